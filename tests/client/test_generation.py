"""Completions of the real service, whole and in a stream."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deltaw_client import Completion, DeltawClient, problems
from schemas.completions import RecomputedPatch
from tests.client.conftest import CONTEXT, QUERY, async_client
from tests.service_process import Served

SAMPLED: dict[str, Any] = {"max_tokens": 6, "seed": 7, "temperature": 1.5}
PATCH = RecomputedPatch(context=CONTEXT, recompute="new")


def text_of(events: list[Completion]) -> str:
    """Join the text of a stream."""
    return "".join(choice.text for event in events for choice in event.choices)


def test_stream_gives_the_tokens_of_the_whole_answer(client: DeltawClient) -> None:
    """With a seed, the stream and the whole answer have the same tokens, text and usage."""
    whole = client.completions(CONTEXT, **SAMPLED)
    asked = client.stream_completions(CONTEXT, **SAMPLED, stream_options={"include_usage": True})
    *events, last = asked
    assert whole.usage
    assert len(events) == whole.usage.completion_tokens == 6
    assert [token for event in events for token in event.tokens or ()] == whole.tokens
    assert text_of(events) == whole.choices[0].text
    assert (last.usage, last.choices) == (whole.usage, [])
    assert (events[0].seed, events[0].resident_model) == (7, whole.resident_model)
    assert {event.request_id for event in events} == {events[0].request_id}
    assert events[0].request_id not in ("", whole.request_id)
    assert whole.server_timing["forward"] > 0


def test_patched_completion_agrees_with_the_run_with_context(client: DeltawClient) -> None:
    """The tokens are those of the prompt behind its context, and each says how equal it is."""
    patched = client.completions(QUERY, patch=PATCH, agreement=True, **SAMPLED)
    plain = client.completions(QUERY, **SAMPLED)
    assert patched.agreement
    assert [each.token for each in patched.agreement] == patched.tokens
    assert all(each.same_token and each.kl < 1e-9 for each in patched.agreement)
    assert patched.one_set_of_weights is False
    assert patched.tokens != plain.tokens


@pytest.mark.parametrize("encoding", ["json", "base64"])
def test_captured_activations_are_those_of_the_text(client: DeltawClient, encoding: str) -> None:
    """Each token's activations are those of the row that it was read from."""
    capture = {"layers": [1], "hook_points": ["resid_post"], "encoding": encoding}
    answer = client.completions([5, 6, 7], max_tokens=3, temperature=0.0, capture=capture)
    assert answer.activations
    assert answer.tokens
    (captured,) = answer.activations
    text = [5, 6, 7, *answer.tokens[:-1]]
    seen = client.activations(
        [text], layers=[1], hook_points=["resid_post"], positions=[-3, -2, -1]
    )
    assert np.allclose(captured.values, seen.prompts[0].activations[0].values, atol=1e-5)


def test_many_completions_in_one_request(client: DeltawClient) -> None:
    """`lines` asks for completions, each with its own prompt, and gives a mistake as an error."""
    bodies = [{"prompt": CONTEXT}, {"prompt": QUERY}, {"prompt": ""}]
    lines = sorted(client.lines("completions", bodies, **SAMPLED), key=lambda line: line.index)
    assert [line.answer.tokens for line in lines[:2]] == [
        client.completions(prompt, **SAMPLED).tokens for prompt in (CONTEXT, QUERY)
    ]
    assert isinstance(lines[2].error, problems.EmptyQuery)


def test_problem_before_the_stream_is_raised(client: DeltawClient) -> None:
    """A mistake is raised as its problem when the first event is taken."""
    events = client.stream_completions(QUERY, max_tokens=10_000)
    with pytest.raises(problems.ProblemError) as raised:
        next(events)
    assert raised.value.status == 422
    with pytest.raises(problems.UnknownModel):
        next(client.stream_completions(QUERY, model="another"))


def test_closing_a_stream_ends_the_generation(bundled_service: Served) -> None:
    """After the iterator is closed, the service gives the question up as its client has left."""
    with DeltawClient(bundled_service.url) as client:
        before = left(bundled_service)
        events = client.stream_completions("The capital of", max_tokens=900, seed=1)
        next(events)
        events.close()
        until = time.monotonic() + 10.0
        while left(bundled_service) == before and time.monotonic() < until:
            time.sleep(0.02)
        assert left(bundled_service) == before + 1
        whole = client.completions("The capital of", max_tokens=1, seed=1)
    assert whole.tokens


def left(service: Served) -> float:
    """Return the number of completions whose client left."""
    wanted = 'deltaw_http_requests_total{method="POST",route="/v1/completions",status="499"}'
    text = httpx.get(f"{service.url}/metrics", trust_env=False).text
    found = [line for line in text.splitlines() if line.startswith(wanted)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def test_async_stream(tiny_folder: Path) -> None:
    """The client for asyncio streams the same tokens, several streams at once."""

    async def ask() -> list[list[int]]:
        async with async_client(tiny_folder) as client:

            async def one(prompt: str) -> list[int]:
                async with aclosing(client.stream_completions(prompt, **SAMPLED)) as events:
                    return [token async for event in events for token in event.tokens or ()]

            whole = (await client.completions(CONTEXT, **SAMPLED)).tokens or []
            return [list(whole), *await asyncio.gather(one(CONTEXT), one(CONTEXT))]

    whole, first, second = asyncio.run(ask())
    assert whole == first == second
    assert len(whole) == 6


def test_models_has_the_resident_model(client: DeltawClient) -> None:
    """The first model is the resident one, whose id a completion takes."""
    resident = client.models().data[0]
    assert resident.parent is None
    assert client.completions(QUERY, model=resident.id, max_tokens=1).model == resident.id
