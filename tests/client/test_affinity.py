"""The header `X-Deltaw-Context`: the key of a context, by which a proxy chooses a replica."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from inspect import iscoroutine
from typing import Any

import httpx
import numpy as np
import pytest

from deltaw_client import AsyncDeltawClient, DeltawClient, adapters, generation, problems
from deltaw_client.calls import Call
from deltaw_client.resources import (
    Text,
    activations,
    attributions,
    equivalence_checks,
    model,
    tokenize,
    trajectories,
    weight_updates,
)
from schemas.affinity import CONTEXT_HEADER, context_key
from schemas.completions import RecomputedPatch
from tests.client.conftest import Reply, problem, scripted
from tests.client.test_mirrors import METHODS

IDS = np.array([5, 6, 7], dtype=np.int32)
PATCH = RecomputedPatch(context="the abc")
WITH_CONTEXT: Mapping[str, Call[Any]] = {
    "activations": activations(["the abc", "cd"]),
    "weight_updates": weight_updates("the abc", " cd"),
    "equivalence_checks": equivalence_checks("naïve 🙂", " cd"),
    "trajectories": trajectories([5, 6, 7], [8]),
    "attributions": attributions((5, 6, 7), [8]),
    "tokenize": tokenize(context="the abc", query=" cd"),
    "completions": generation.completions(" cd", patch=PATCH),
    "stream_completions": generation.stream_completions("the abc"),
    "adapters.create": adapters.create("the abc", kind="token", query=" cd"),
}
"""One call of each method whose body has a context."""
WITHOUT: Mapping[str, Call[Any]] = {
    "model": model(),
    "models": generation.models(),
    "tokenize": tokenize([]),
    "adapters.list": adapters.list_all(),
    "adapters.get": adapters.get("a1b2"),
    "adapters.delete": adapters.delete("a1b2"),
}
SAME: Mapping[str, tuple[Call[Any], Call[Any]]] = {
    "an array": (weight_updates([5, 6, 7], " cd"), weight_updates(IDS, " cd")),
    "a tuple": (weight_updates([5, 6, 7], " cd"), weight_updates((5, 6, 7), " cd")),
    "a list of NumPy's integers": (weight_updates(list(IDS), "a"), weight_updates(IDS, "a")),
    "a prompt": (activations([[5, 6, 7]]), activations([IDS])),
    "a patch": (
        generation.completions("a", patch={"context": [5, 6, 7]}),
        generation.completions("a", patch={"context": IDS}),
    ),
    "another question": (weight_updates("the abc", " cd"), tokenize(context="the abc", query="")),
}
"""Two calls with the same context."""


def sent(call: Call[Any]) -> httpx.Request:
    """Build a call's request."""
    with httpx.Client(base_url="http://localhost") as http:
        return call.request(http)


@pytest.mark.parametrize("call", WITH_CONTEXT.values(), ids=WITH_CONTEXT)
def test_header_is_the_key_of_the_body(call: Call[Any]) -> None:
    """The header has the key that a proxy can compute from the JSON body."""
    request = sent(call)
    key = context_key(json.loads(request.content))
    assert key is not None
    assert request.headers[CONTEXT_HEADER] == key


@pytest.mark.parametrize("call", WITHOUT.values(), ids=WITHOUT)
def test_request_without_a_context_has_no_such_header(call: Call[Any]) -> None:
    """A request without a body, or without prompts, does not have the header."""
    assert CONTEXT_HEADER not in sent(call).headers


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_same_context_has_the_same_key(one: Call[Any], other: Call[Any]) -> None:
    """Ids have the same key as a list, a tuple or an array, whatever else the body has."""
    assert sent(one).headers[CONTEXT_HEADER] == sent(other).headers[CONTEXT_HEADER]


def test_other_contexts_have_other_keys() -> None:
    """Contexts with the same beginning have different keys, and so do a text and ids."""
    contexts: list[Text] = ["the abc", "the abc cd", [5, 6, 7], [5, 6, 8], "[5,6,7]x"]
    keys = {sent(weight_updates(context, " cd")).headers[CONTEXT_HEADER] for context in contexts}
    assert len(keys) == len(contexts)


def test_each_method_is_tested_here() -> None:
    """Every method of the client is in one of the tables above."""
    assert {*METHODS} <= {*WITH_CONTEXT, *WITHOUT}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_both_clients_send_the_header(client: DeltawClient, asynchronous: bool) -> None:
    """Calls, adapters and streams send the header; an NDJSON request does not."""
    model: Reply = (200, {"Content-Type": "application/json"}, client.model().content)
    refused = problem("validation")

    def asked(made: Any) -> list[Callable[[], Any]]:
        return [
            lambda: made.weight_updates("the abc", " cd"),
            lambda: made.adapters.create("the abc", kind="token", query=" cd"),
            lambda: made.stream_completions("the abc"),
            lambda: made.lines("weight_updates", [("the abc", " cd")]),
        ]

    async def ask(url: str) -> None:
        async with AsyncDeltawClient(url) as made:
            for call in asked(made):
                answer = call()
                with pytest.raises(problems.Validation):
                    await (answer if iscoroutine(answer) else anext(answer))

    with scripted(refused, refused, refused, model, refused) as service:
        if asynchronous:
            asyncio.run(ask(service.url))
        else:
            with DeltawClient(service.url) as made:
                for call in asked(made):
                    with pytest.raises(problems.Validation):
                        next(call())
    keys = [heard.get(CONTEXT_HEADER.lower()) for heard in service.heard]
    key = context_key({"context": "the abc"})
    assert keys == [key, key, key, None, None]
