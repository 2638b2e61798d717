"""Bodies of `/v1/completions`."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.completions import CompletionRequest

DEFAULTS = {"max_tokens": 16, "temperature": 1.0, "top_p": 1.0, "echo": False, "stream": False}


def test_null_means_the_default() -> None:
    """Options that OpenAI's clients send as null have the values of options that are left out."""
    body = {"prompt": "a", **dict.fromkeys(DEFAULTS)}
    assert CompletionRequest.model_validate(body) == CompletionRequest(prompt="a")
    plain = CompletionRequest.model_validate(body).model_dump(include=set(DEFAULTS))
    assert plain == DEFAULTS


@pytest.mark.parametrize("name", DEFAULTS)
def test_schema_has_null_and_the_default(name: str) -> None:
    """The schema of such an option allows null, and has its default and its description."""
    option = CompletionRequest.model_json_schema()["properties"][name]
    assert option["type"][1] == "null"
    assert option["default"] == DEFAULTS[name]
    assert option["description"]


@pytest.mark.parametrize("name", DEFAULTS)
def test_values_of_another_type_are_refused(name: str) -> None:
    """Values are not coerced."""
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({"prompt": "a", name: "1"})
