"""Problems on the wire: what is optional is absent, and nothing unknown is allowed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.common import UNSET, adapter
from schemas.problems import PROBLEMS, FieldError, Problem
from tests.api.wire import RETRYABLE


def test_nothing_unknown() -> None:
    """A problem with a field that the contract has not is none."""
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
def test_words(code: str) -> None:
    """Each code says what it means in a sentence, and what it means for a retry."""
    kind = PROBLEMS[code]
    assert kind.title
    assert kind.meaning.endswith(".")
    assert kind.retryable == (kind.status in RETRYABLE)
