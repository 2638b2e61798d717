"""Adapters, models and completions: what the client sends, and what it makes of the replies."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from deltaw_client import (
    AsyncDeltawClient,
    DeltawClient,
    DeltawError,
    UnexpectedAnswer,
    problems,
)
from schemas.common import UNSET
from tests.client.conftest import CONTEXT, QUERY, problem, scripted
from tests.client.made import FEW, HELD_OUT, STATIC, TOKEN, answered

CONFIG = (200, {"Content-Type": "application/json"}, b'{"peft_type": "LORA"}')
WEIGHTS = (200, {"Content-Type": "application/vnd.safetensors"}, b"\x08weights")
PAGE = (200, {"Content-Type": "text/html"}, b"<html>")
GONE = (204, {"X-Request-ID": "mine"}, b"")


def test_create_sends_the_given_fields_and_returns_the_adapter() -> None:
    """Arguments that are None are left to the service; the figures arrive as classes."""
    with scripted(answered(STATIC)) as service, DeltawClient(service.url) as client:
        made = client.adapters.create("a: b\n", kind="static", queries=["c:", "d:"], rank=8)
        ((request, body),) = service.asked
    assert request == "POST /v1/adapters"
    wanted = {"kind": "static", "context": "a: b\n", "queries": ["c:", "d:"], "rank": 8}
    assert json.loads(body) == wanted
    assert (made.id, made.exact, made.held_out, made.request_id) == (
        "c3d4",
        False,
        HELD_OUT,
        "mine",
    )


def test_missing_figures_are_none() -> None:
    """Figures that the service cannot form are None, which is false."""
    with scripted(answered(FEW)) as service, DeltawClient(service.url) as client:
        made = client.adapters.get("c3d4")
    assert made.held_out is None
    assert made.in_sample


def test_adapter_is_got_listed_and_deleted() -> None:
    """Each method asks its path; an id cannot reach another path."""
    listed = {"model": json.loads(answered(TOKEN)[2])["model"], "adapters": [], "bytes": 0}
    entries = (200, {"Content-Type": "application/json"}, json.dumps(listed | {"limit_bytes": 9}))
    replies = (answered(TOKEN), (*entries[:2], entries[2].encode()), GONE, problem("not_found"))
    with scripted(*replies) as service, DeltawClient(service.url) as client:
        assert client.adapters.get("a1b2").positions == [0]
        assert client.adapters.list().limit_bytes == 9
        assert client.adapters.delete("a1b2").request_id == "mine"
        with pytest.raises(problems.NotFound):
            client.adapters.delete("../model?x#y")
        asked = [request for request, _ in service.asked]
    assert asked == [
        "GET /v1/adapters/a1b2",
        "GET /v1/adapters",
        "DELETE /v1/adapters/a1b2",
        "DELETE /v1/adapters/..%2Fmodel%3Fx%23y",
    ]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_download_writes_a_folder(tmp_path: Path, asynchronous: bool) -> None:
    """The folder has the two files that PEFT reads, byte for byte, and nothing else."""
    folder = tmp_path / "new" / "adapter"

    async def download(url: str) -> Path:
        async with AsyncDeltawClient(url) as client:
            return await client.adapters.download("a1b2", folder)

    with scripted(WEIGHTS, CONFIG) as service:
        if asynchronous:
            written = asyncio.run(download(service.url))
        else:
            with DeltawClient(service.url) as client:
                written = client.adapters.download("a1b2", folder)
        assert [request for request, _ in service.asked] == [
            "GET /v1/adapters/a1b2/adapter_model.safetensors",
            "GET /v1/adapters/a1b2/adapter_config.json",
        ]
    assert written == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "adapter_model.safetensors": WEIGHTS[2],
        "adapter_config.json": CONFIG[2],
    }


@pytest.mark.parametrize(
    ("reply", "error"), [(problem("not_found"), problems.NotFound), (PAGE, UnexpectedAnswer)]
)
def test_failed_download_writes_nothing(
    tmp_path: Path, reply: tuple[int, dict[str, str], bytes], error: type[DeltawError]
) -> None:
    """If a file cannot be fetched, or a proxy answers, the folder stays as it was."""
    with (
        scripted(WEIGHTS, reply) as service,
        DeltawClient(service.url) as client,
        pytest.raises(error),
    ):
        client.adapters.download("a1b2", tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_async_client_has_the_adapters(tmp_path: Path) -> None:
    """The methods of the client for asyncio are coroutines with the same answers."""

    async def ask(url: str) -> tuple[str, str]:
        async with AsyncDeltawClient(url) as client:
            made = await client.adapters.create("a", kind="token", query=" b")
            return made.id, (await client.adapters.get(made.id)).id

    with scripted(answered(TOKEN)) as service:
        assert asyncio.run(ask(service.url)) == ("a1b2", "a1b2")


def test_completion_sends_its_patch_and_reads_the_answer() -> None:
    """A completion sends what was given, and gives text, tokens and usage."""
    body = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "bundled",
        "choices": [{"text": " Berlin", "index": 0, "finish_reason": "length", "logprobs": None}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
        "tokens": [11],
        "seed": 7,
    }
    reply = (200, {"Content-Type": "application/json"}, json.dumps(body).encode())
    with scripted(reply) as service, DeltawClient(service.url) as client:
        answer = client.completions(" is", max_tokens=1, patch={"context": "a", "recompute": "new"})
        ((request, sent),) = service.asked
    assert request == "POST /v1/completions"
    sent_fields = json.loads(sent)
    assert sent_fields["patch"] == {"context": "a", "recompute": "new"}
    assert "stream" not in sent_fields
    assert (answer.choices[0].text, answer.tokens, answer.seed) == (" Berlin", [11], 7)
    assert answer.usage
    assert answer.usage.total_tokens == 6


def test_models_lists_parents() -> None:
    """`models` gives the resident model and its adapters."""
    cards = [
        {"id": "bundled", "object": "model", "created": 1, "owned_by": "deltaw", "parent": None},
        {"id": "a1b2", "object": "model", "created": 2, "owned_by": "deltaw", "parent": "bundled"},
    ]
    body = json.dumps({"object": "list", "data": cards}).encode()
    reply = (200, {"Content-Type": "application/json"}, body)
    with scripted(reply) as service, DeltawClient(service.url) as client:
        listed = client.models()
    assert [card.parent for card in listed.data] == [None, "bundled"]


def test_token_adapter_is_made_downloaded_used_and_deleted(
    client: DeltawClient, tmp_path: Path
) -> None:
    """A token adapter of the real service gives the answer with context at its position."""
    made = client.adapters.create(CONTEXT, kind="token", query=QUERY, name="mine")
    again = client.adapters.create(CONTEXT, kind="token", query=QUERY)
    assert (made.id, made.name, made.exact) == (again.id, "mine", True)
    assert made.verified < 1e-5
    assert made.held_out is UNSET
    assert client.adapters.get(made.id).layers == made.layers
    assert made.id in [entry.id for entry in client.adapters.list().adapters]
    assert [card.parent for card in client.models().data if card.id == made.id] == [made.model.id]

    folder = client.adapters.download(made.id, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    held = load_file(folder / "adapter_model.safetensors")
    assert sum(values.nbytes for values in held.values()) < made.bytes
    assert all(np.isfinite(values).all() for values in held.values())

    asked: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "agreement": True}
    patch = {"adapter": made.id, "context": CONTEXT}
    (event,) = client.stream_completions(QUERY, patch=patch, **asked)
    assert event.agreement
    assert event.agreement[0].same_token
    assert event.agreement[0].kl < 1e-9

    client.adapters.delete(made.id)
    with pytest.raises(problems.UnknownAdapter):
        client.adapters.get(made.id)
