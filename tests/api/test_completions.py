"""`/v1/completions` and `/v1/models`: answers, streams, limits, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch

from schemas.common import read_answer
from schemas.completions import Completion, ModelsAnswer
from schemas.problems import Problem
from service.settings import Settings
from tests.api.conftest import NARROW, POISON, Heard
from tests.api.test_exchange import FORWARDS, SHORT
from tests.api.wire import (
    CANARY,
    SAFETENSORS,
    array,
    metric,
    problem,
    unpack,
    until,
)
from tests.checkpoints import save_tiny
from tests.conftest import app_client

PATH = "/v1/completions"
GREEDY: dict[str, Any] = {"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0}
LONG: dict[str, Any] = {"prompt": [1 + i % 200 for i in range(300)], "max_tokens": 600}
"""A completion that takes the slow server many seconds."""
DONE = "[DONE]"


def events_of(content: str) -> list[str]:
    """The data of each server-sent event."""
    *events, rest = content.split("\n\n")
    assert rest == ""
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


def test_stream_is_server_sent_events(tiny_heard: Heard) -> None:
    """A stream is one event per token and `[DONE]`; its tokens are those of the plain answer."""
    whole = tiny_heard.client.post(PATH, json=GREEDY)
    body = GREEDY | {"stream": True, "stream_options": {"include_usage": True}}
    streamed = tiny_heard.client.post(PATH, json=body, headers={"X-Request-ID": "a.stream"})
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert streamed.headers["cache-control"] == "no-store"
    assert streamed.headers["x-accel-buffering"] == "no"
    assert "server-timing" not in streamed.headers
    assert "forward;dur=" in whole.headers["server-timing"]
    *events, done = events_of(streamed.text)
    assert done == DONE
    *tokens, last = [read_answer(Completion, event) for event in events]
    answer = read_answer(Completion, whole.content)
    assert [token for one in tokens for token in one.tokens or ()] == answer.tokens
    assert "".join(one.choices[0].text for one in tokens) == answer.choices[0].text
    assert [one.usage for one in tokens] == [None] * 4
    assert (last.choices, last.usage) == ([], answer.usage)
    line = tiny_heard.log.await_request("a.stream")
    assert (line["status"], line["rows"]) == (200, 6)
    assert line["timings_ms"]["forward"] > 0


def test_prompts_and_completions_are_not_logged(tiny_heard: Heard) -> None:
    """No text of a request or of its completion is in the log."""
    for more in ({}, {"stream": True}, {"patch": {"context": CANARY}, "agreement": True}):
        body = {"prompt": CANARY, "max_tokens": 2, "stop": CANARY, "user": CANARY, "echo": True}
        headers = {"X-Request-ID": "not.logged"}
        answer = tiny_heard.client.post(PATH, json=body | more, headers=headers)
        assert CANARY in answer.text
        tiny_heard.log.await_request("not.logged")
    assert CANARY not in tiny_heard.log.text


def test_captured_activations_have_the_encoding_or_are_a_file(tiny_client: httpx.Client) -> None:
    """The same values come as base64, as lists and as a safetensors file."""
    body = GREEDY | {"capture": {"layers": [1], "hook_points": ["mlp_in"]}}
    coded = tiny_client.post(PATH, json=body).json()["activations"][0]["values"]
    assert (coded["encoding"], coded["shape"]) == ("base64", [4, 32])
    listed = json.loads(json.dumps(body))
    listed["capture"]["encoding"] = "json"
    plain = tiny_client.post(PATH, json=listed).json()["activations"][0]["values"]
    file = tiny_client.post(PATH, json=body, headers={"Accept": SAFETENSORS})
    _, tensors = unpack(file.content)
    np.testing.assert_allclose(array(coded), array(plain), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(array(coded), tensors["activations.0.values"], rtol=1e-5, atol=1e-6)


def test_lines_are_completions_without_streams(tiny_client: httpx.Client) -> None:
    """NDJSON answers a completion per line, and refuses a stream in a line."""
    lines = [GREEDY, GREEDY | {"prompt": "ab"}, GREEDY | {"stream": True}]
    sent = "".join(f"{json.dumps(line)}\n" for line in lines)
    headers = {"Content-Type": "application/x-ndjson"}
    found = tiny_client.post(PATH, content=sent, headers=headers).text.splitlines()
    first, second, third = map(json.loads, found)
    assert first["body"]["tokens"] == tiny_client.post(PATH, json=GREEDY).json()["tokens"]
    assert second["status"] == 200
    assert third["body"]["code"] == "not_supported"
    assert third["body"]["errors"][0]["pointer"] == "/stream"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "code", "where"),
    [
        ({"model": CANARY}, "unknown_model", "/model"),
        ({"patch": {"adapter": CANARY}}, "unknown_adapter", None),
        ({"max_tokens": 64}, "prompt_too_long", "/max_tokens"),
        ({"patch": {"context": "a", "baseline": {"without": [[0, 9]]}}}, "bad_span", None),
        ({"best_of": 2}, "not_supported", "/best_of"),
    ],
)
def test_refusals_are_problems_before_a_stream_begins(
    tiny_client: httpx.Client, more: dict[str, Any], code: str, where: str | None, stream: bool
) -> None:
    """A refused stream has the status of its problem, like any answer."""
    sent = GREEDY | more | {"stream": stream}
    said = problem(tiny_client.post(PATH, json=sent), code, sent)
    if where is not None:
        assert [one.pointer for one in said.errors or ()] == [where]


def test_streams_and_json_are_acceptable(tiny_client: httpx.Client) -> None:
    """A stream is sent to clients that accept events or JSON, and to no others."""
    sent = GREEDY | {"stream": True}
    for accept in ("application/json", "text/event-stream", "*/*"):
        assert tiny_client.post(PATH, json=sent, headers={"Accept": accept}).is_success
    problem(tiny_client.post(PATH, json=sent, headers={"Accept": "image/png"}), "not_acceptable")


def test_completions_above_the_limits_never_fit(narrow: Heard) -> None:
    """Rows and captured activations above the limits are refused by their shapes, with both
    numbers, in streams too."""
    rows = GREEDY | {"max_tokens": 50}
    large = GREEDY | {"max_tokens": 30, "capture": {"hook_points": ["mlp_act", "mlp_pre"]}}
    for sent, limit in ((rows, "max_tokens_per_request"), (large, "max_response_bytes")):
        for stream in (False, True):
            body = sent | {"stream": stream}
            said = problem(narrow.client.post(PATH, json=body), "never_fits", body)
            assert said.limit == NARROW[limit]
    # Its logits are NaN, so a completion that fits ends with another problem.
    norms = large | {"capture": {"hook_points": ["mlp_act"], "layers": [0], "reduce": "norm"}}
    problem(narrow.client.post(PATH, json=norms), "non_finite", norms)


def test_error_of_the_first_token_has_its_status(narrow: Heard) -> None:
    """NaN at the first token of a stream is an ordinary problem, and the next request is
    answered."""
    sent = {"prompt": POISON, "stream": True}
    problem(narrow.client.post(PATH, json=sent), "non_finite", sent)


def test_error_within_a_stream_ends_it_without_done(tmp_path: Path) -> None:
    """A stream that exceeds its deadline ends with the problem as an event, and no `[DONE]`."""
    with torch.inference_mode(False):
        folder = save_tiny(tmp_path / "long", n_positions=1024)

    async def streamed() -> httpx.Response:
        settings = Settings(model=str(folder), deadline_seconds=0.2, threads=1)
        async with app_client(settings) as client:
            body = {"prompt": [5], "max_tokens": 1000, "temperature": 0, "stream": True}
            return await client.post(PATH, json=body, headers={"X-Request-ID": "late"})

    with torch.inference_mode(False):
        answer = asyncio.run(streamed())
    assert answer.status_code == 200
    *tokens, last = events_of(answer.text)
    assert 0 < len(tokens) < 1000
    said = read_answer(Problem, json.dumps(json.loads(last)["error"]))
    assert (said.code, said.status, said.request_id) == ("deadline_exceeded", 504, "late")


def connected(heard: Heard, name: str, body: dict[str, Any]) -> socket.socket:
    """A connection that has sent a request and reads nothing yet."""
    parts = urlsplit(heard.served.url)
    content = json.dumps(body).encode()
    connection = socket.create_connection((parts.hostname, parts.port))
    head = f"POST {PATH} HTTP/1.1\r\nHost: {parts.netloc}\r\nX-Request-ID: {name}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + content)
    return connection


def test_client_that_leaves_a_stream_frees_its_slot_within_a_token(slow: Heard) -> None:
    """After the first event the client leaves: the request is logged as 499, no more than a few
    tokens are computed, and the next request is answered."""
    with connected(slow, "left.stream", LONG | {"stream": True}) as connection:
        received = b""
        while b"data: " not in received:
            received += connection.recv(1 << 16)
    assert slow.log.await_request("left.stream")["status"] == 499
    before = metric(slow.client, FORWARDS)
    answer = slow.client.post("/v1/equivalence-checks", json=SHORT)
    assert answer.status_code == 200
    # The answered check has one or two forwards of its own; the stream would have had hundreds.
    assert metric(slow.client, FORWARDS) - before <= 4


@pytest.mark.slow
def test_client_that_reads_nothing_holds_no_slot(slow: Heard) -> None:
    """A question is computed to its end while the client reads nothing, the next one is answered,
    and all events are still there to be read."""
    body = {"prompt": [5], "max_tokens": 60, "temperature": 0, "stream": True}
    body["capture"] = {"hook_points": ["mlp_act", "mlp_pre"]}
    with connected(slow, "slow.reader", body) as connection:
        until(lambda: metric(slow.client, "deltaw_queue_depth") == 0 or None)
        assert slow.client.post("/v1/equivalence-checks", json=SHORT).status_code == 200
        received = bytearray()
        while part := connection.recv(1 << 20):
            received += part
    assert len(received) > 60 * 12 * 2 * 1024 * 4
    assert received.count(b'"tokens":[') == 60
    assert b"data: [DONE]" in received


def test_models_are_listed_in_openais_shape(tiny_client: httpx.Client) -> None:
    """The resident model is listed, with the time of its self-check."""
    answer = read_answer(ModelsAnswer, tiny_client.get("/v1/models").content)
    resident = answer.data[0]
    assert resident.id == tiny_client.get("/v1/model").json()["model"]["id"]
    assert (answer.object, resident.object, resident.parent) == ("list", "model", None)
    assert resident.created > 1_700_000_000


def test_adapter_is_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    """A token adapter is listed with its parent and used by its id; behind its own context its
    first token is that of the run with context, and at scale 0 it is not."""
    context, query = [9, 8, 7, 6], [5, 4]
    settings = Settings(model=str(tiny_folder), adapters=tmp_path / "adapters", threads=1)

    async def used() -> None:
        async with app_client(settings) as client:
            made = {"kind": "token", "context": context, "query": query}
            adapter = (await client.post("/v1/adapters", json=made)).json()["id"]
            resident, listed = (await client.get("/v1/models")).json()["data"]
            assert (listed["id"], listed["parent"]) == (adapter, resident["id"])
            body = {"prompt": query, "max_tokens": 1, "temperature": 0}
            named = (await client.post(PATH, json=body | {"model": adapter})).json()
            assert named["model"] == adapter
            assert named["one_set_of_weights"] is True
            found = {}
            for scale in (1.0, 0.0):
                patch = {"adapter": adapter, "context": context, "scale": scale}
                sent = body | {"patch": patch, "agreement": True}
                (found[scale],) = (await client.post(PATH, json=sent)).json()["agreement"]
            assert found[1.0]["kl"] <= 1e-10
            assert found[1.0]["same_token"]
            assert found[1.0]["rows_patched"] == 2
            assert found[0.0]["kl"] > 1e-3
            both = body | {"model": adapter, "patch": {"context": context}}
            problem(await client.post(PATH, json=both), "not_supported", both)

    with torch.inference_mode(False):
        asyncio.run(used())
