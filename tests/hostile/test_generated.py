"""A short run of generated requests; `make fuzz` sends many."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.generated import KEY, generate, running

CHECKS = {
    "allow_header_conformance",
    "content_type_conformance",
    "ensure_resource_availability",
    "ignored_auth",
    "missing_required_header",
    "negative_data_rejection",
    "not_a_server_error",
    "object_level_authorization",
    "positive_data_acceptance",
    "quiet",
    "response_headers_conformance",
    "response_schema_conformance",
    "status_code_conformance",
    "unsupported_method",
    "use_after_free",
}
"""The checks of schemathesis, and `quiet`, which is ours."""


@pytest.mark.parametrize("key", [None, pytest.param(KEY, marks=pytest.mark.slow)])
def test_generated_requests_conform_to_the_openapi_document(
    tiny_folder: Path, key: str | None
) -> None:
    """Every generated request gets the answer that the OpenAPI document promises, never 500, and no
    error repeats the request."""
    keys = {"api_keys": (key,)} if key else {}
    with running(tiny_folder, threads=1, **keys) as app:
        tried = generate(app, examples=4, seed=1, key=key)
    assert not tried.failures, "\n\n".join(tried.failures.values())
    assert set(tried.checks) == CHECKS
    assert tried.statuses[200] > 50
    assert tried.statuses[422] > 500
    assert (tried.statuses[401] > 0) == (tried.statuses[403] > 0) == (key is not None)
