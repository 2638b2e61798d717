"""Problems on the wire: optional fields are absent and unknown fields are forbidden."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.common import UNSET, adapter
from schemas.problems import PROBLEMS, FieldError, Problem
from tests.api.wire import RETRYABLE


def test_problems_forbid_unknown_fields() -> None:
    """A problem or field error with an unknown field is invalid."""
    fields = {
        "type": "/problems/internal",
        "title": "t",
        "status": 500,
        "detail": "d",
        "instance": "/",
        "code": "internal",
        "request_id": "r",
        "retryable": False,
    }
    read: Problem = adapter(Problem).validate_python(fields)
    assert read.errors is UNSET
    with pytest.raises(ValidationError):
        adapter(Problem).validate_python(fields | {"input": "x"})
    with pytest.raises(ValidationError):
        adapter(FieldError).validate_python({"pointer": "", "message": "m", "value": "x"})


@pytest.mark.parametrize("code", PROBLEMS)
def test_each_code_has_a_title_a_meaning_and_a_retry_flag(code: str) -> None:
    """Each code has a title, a meaning in a sentence, and a retryable flag that follows its
    status."""
    kind = PROBLEMS[code]
    assert kind.title
    assert kind.meaning.endswith(".")
    assert kind.retryable == (kind.status in RETRYABLE)
