"""API keys: where there are any, only probes and documentation are open without one."""

from __future__ import annotations

import httpx
import pytest

from tests.api.conftest import KEY, Heard
from tests.api.test_bodies import PATHS
from tests.api.wire import problem


@pytest.mark.parametrize("path", [*PATHS.values(), "/v1/model", "/metrics"])
@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_key"),
        ("Basic b3Blbjpz", "missing_key"),
        ("Bearer zqcanaryqz", "wrong_key"),
        (f"Bearer {KEY}x", "wrong_key"),
    ],
)
def test_missing_or_wrong_key_is_refused(
    narrow: Heard, path: str, header: str | None, code: str
) -> None:
    """Without a valid key the service reads no body, not even a malformed one."""
    method = "POST" if path in PATHS.values() else "GET"
    headers = {"Authorization": header} if header else {}
    response = httpx.request(method, narrow.served.url + path, content=b"{", headers=headers)
    problem(response, code)
    if code == "missing_key":
        assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("key", [KEY, "another"])
def test_each_key_is_accepted(narrow: Heard, key: str) -> None:
    """Each of the configured keys is accepted."""
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{narrow.served.url}/v1/model", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/openapi.json", "/docs"])
def test_probes_and_documentation_need_no_key(narrow: Heard, path: str) -> None:
    """Probes and documentation are never authenticated."""
    assert httpx.get(narrow.served.url + path).status_code == 200
