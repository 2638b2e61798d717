"""The `openai` package against a served process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import NotFoundError, OpenAI, UnprocessableEntityError

from schemas.pairs import SEED_CONTEXT
from tests.service_process import Served

PROMPT = "The capital of Malaysia is"


@pytest.fixture(scope="module")
def client(bundled_service: Served) -> Iterator[OpenAI]:
    """OpenAI's client of the service with the bundled GPT-2."""
    url = f"{bundled_service.url}/v1"
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60.0) as made:
        yield made


def test_openai_client_lists_the_model(client: OpenAI) -> None:
    """The list has the resident model, which has no parent."""
    found = {one.id: one for one in client.models.list()}
    assert found["bundled"].object == "model"
    assert found["bundled"].owned_by == "deltaw"
    assert found["bundled"].to_dict()["parent"] is None


def test_openai_client_completes_a_prompt(client: OpenAI) -> None:
    """Text, finish reason, usage and log-probabilities are where OpenAI's client has them."""
    answer = client.completions.create(
        model="bundled", prompt=PROMPT, max_tokens=4, temperature=0, logprobs=2, stop=[" of"]
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.tokens
    assert choice.text == "".join(choice.logprobs.tokens).partition(" of")[0]
    assert choice.finish_reason == ("stop" if " of" in choice.logprobs.tokens else "length")
    assert choice.logprobs.top_logprobs
    for token, score, top in zip(
        choice.logprobs.tokens,
        choice.logprobs.token_logprobs or (),
        choice.logprobs.top_logprobs,
        strict=True,
    ):
        assert top[token] == score == max(top.values())
        assert len(top) == 2
    assert answer.usage is not None
    count = len(choice.logprobs.tokens)
    assert answer.usage.completion_tokens == count
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + count
    assert answer.object == "text_completion"


def test_openai_client_streams_under_a_patch(client: OpenAI) -> None:
    """The events have the texts of the answer, our fields beside them, and the usage at the end."""
    options = {"patch": {"context": SEED_CONTEXT, "recompute": "new"}, "agreement": True}
    whole = client.completions.create(
        model="bundled", prompt=" Berlin", max_tokens=5, seed=3, extra_body=options
    )
    *events, last = client.completions.create(
        model="bundled",
        prompt=" Berlin",
        max_tokens=5,
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=options,
    )
    assert "".join(event.choices[0].text for event in events) == whole.choices[0].text
    agreement = [one for event in events for one in event.to_dict()["agreement"]]  # type: ignore[attr-defined]
    assert [one["token"] for one in agreement] == whole.to_dict()["tokens"]
    assert all(one["same_token"] and one["kl"] <= 1e-11 for one in agreement)
    assert last.choices == []
    assert last.usage == whole.usage
    assert [event.usage for event in events] == [None] * 5


def test_openai_client_raises_the_problem(client: OpenAI) -> None:
    """An error's body is the problem, and its class is that of the status."""
    with pytest.raises(NotFoundError) as unknown:
        client.completions.create(model="gpt-5", prompt=PROMPT)
    with pytest.raises(UnprocessableEntityError) as refused:
        client.completions.create(model="bundled", prompt=PROMPT, n=2, stream=True)
    found = [error.value.body for error in (unknown, refused)]
    assert [body["code"] for body in found if isinstance(body, dict)] == [
        "unknown_model",
        "not_supported",
    ]
