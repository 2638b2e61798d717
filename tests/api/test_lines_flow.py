"""NDJSON under way: what is read, computed and kept when a client waits, stalls or leaves."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from service.api import lines
from service.api.bodies import parse
from service.api.state import State
from service.errors import OutOfMemory
from service.settings import Settings
from tests.api.by_hand import NDJSON, SECONDS, ByHand, client_for, lines_of, ready_app
from tests.api.test_bodies import PATHS
from tests.api.test_request_log import BODIES

Check = Callable[[FastAPI, State], Coroutine[Any, Any, None]]
UPDATES = PATHS["updates"]


def body(number: int, tokens: int = 20, **options: Any) -> dict[str, Any]:
    """A line whose context differs for each number."""
    context = [1 + (number // 200**i + 7 * i) % 200 for i in range(tokens)]
    return {"context": context, "query": [1], "layers": [0], "include": [], **options}


def run(check: Check, folder: Path, **settings: Any) -> None:
    """Run a check against the app. The app must have forgotten every request afterwards."""

    async def main() -> None:
        async with ready_app(Settings(model=str(folder), threads=1, **settings)) as (app, state):
            await check(app, state)

    asyncio.run(main())


def forwards(state: State) -> int:
    """Number of forwards so far."""
    value = state.metrics.registry.get_sample_value("deltaw_forward_seconds_count")
    return int(value or 0)


@contextmanager
def held(state: State) -> Iterator[None]:
    """Keep the compute thread from taking questions out of the queue."""
    with state.engine._changed:
        yield


def arrived(request: ByHand, count: int) -> bool:
    """Whether exactly `count` answer lines of a request have arrived."""
    return len(request.lines) == count


async def queued(state: State) -> None:
    """Wait until a question is in the queue."""
    async with asyncio.timeout(SECONDS):
        while not state.engine.waiting:
            await asyncio.sleep(0.01)


def test_lines_have_the_bytes_of_their_own_requests(tiny_folder: Path) -> None:
    """Without batching and cache each line of each resource has the numbers of its own request, bit
    for bit."""

    async def check(app: FastAPI, _state: State) -> None:
        async with client_for(app) as client:
            for resource, first in BODIES.items():
                second: dict[str, Any] = {"prompts": ["ab", [1, 2]]}
                if "context" in first:
                    second = dict.fromkeys(first, "ab. cd. e")
                asked = [first, second, first]
                sent = lines_of(*asked)
                many = await client.post(PATHS[resource], content=sent, headers=NDJSON)
                bodies = []
                for line in many.content.splitlines():
                    bodies.append(line.partition(b',"body":')[2][:-1])
                for one, content in zip(asked, bodies, strict=True):
                    assert (await client.post(PATHS[resource], json=one)).content == content

    run(check, tiny_folder, batching=False, prefix_cache_bytes=0)


def test_batched_lines_agree_with_their_own_requests(tiny_folder: Path) -> None:
    """With batching the norms of a line are those of its own request, to rounding."""

    async def check(app: FastAPI, state: State) -> None:
        asked = [body(i, include=["factors", "bias"]) for i in range(30)]
        async with client_for(app) as client:
            many = await client.post(UPDATES, content=lines_of(*asked), headers=NDJSON)
            before = forwards(state)
            assert before < len(asked)
            for one, line in zip(asked, many.text.splitlines(), strict=True):
                alone = (await client.post(UPDATES, json=one)).json()
                found = json.loads(line)["body"]
                assert found.keys() == alone.keys()
                (update,), (wanted,) = found["updates"], alone["updates"]
                assert update["norm"] == pytest.approx(wanted["norm"], rel=1e-4)
                data = update["weights"][0]["output"]["data"]
                expected = wanted["weights"][0]["output"]["data"]
                assert data == pytest.approx(expected, rel=1e-3, abs=1e-5)

    run(check, tiny_folder)


def test_first_line_is_answered_while_others_are_awaited(tiny_folder: Path) -> None:
    """Each line is answered as soon as it has arrived, whatever the client sends later."""

    async def check(app: FastAPI, _state: State) -> None:
        request = ByHand(app, UPDATES)
        for i in range(3):
            request.write(lines_of(body(i)))
            await request.until(partial(arrived, request, i + 1))
        request.write(lines_of(body(3))[:-1], more=False)
        await request.end()
        assert [line["index"] for line in request.lines] == [0, 1, 2, 3]
        assert {line["status"] for line in request.lines} == {200}

    run(check, tiny_folder)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"max_lines": 3}, "too_many_lines"),
        ({"max_ndjson_bytes": 500}, "body_too_large"),
        ({"body_seconds": 0.2}, "request_timeout"),
    ],
)
def test_what_ends_a_begun_answer_is_its_last_line(
    tiny_folder: Path, settings: dict[str, Any], code: str
) -> None:
    """After the first answer, a limit of the whole request ends it with a line without an index."""

    async def check(app: FastAPI, _state: State) -> None:
        request = ByHand(app, UPDATES, NDJSON | {"x-request-id": "cut"})
        request.write(lines_of(body(0)))
        await request.until(lambda: len(request.lines) == 1)
        if code != "request_timeout":
            request.write(lines_of(*(body(i) for i in range(9))))
        await request.end()
        *_, last = request.lines
        assert set(last) == {"index", "status", "body"}
        assert last["index"] is None
        assert last["body"]["code"] == code
        assert last["status"] == last["body"]["status"]
        assert last["body"]["request_id"] == "cut"
        assert request.status == 200

    run(check, tiny_folder, **settings)


def test_late_body_without_an_answer_returns_408(tiny_folder: Path) -> None:
    """Before the first answer, a body that stalls is refused with a status of its own."""

    async def check(app: FastAPI, _state: State) -> None:
        request = ByHand(app, UPDATES)
        request.write(b'{"context"')
        await request.end()
        assert request.status == 408

    run(check, tiny_folder, body_seconds=0.1)


def test_unread_answers_pause_the_computation(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that does not read gets no more computed than `MAX_UNREAD`, while its lines are
    still read; it gets every answer once it reads."""
    monkeypatch.setattr(lines, "MAX_UNREAD", 100_000)

    async def check(app: FastAPI, state: State) -> None:
        request = ByHand(app, UPDATES)
        request.reads.clear()
        count = 200
        for i in range(count):
            request.write(lines_of(body(i)))
        done = -1
        while forwards(state) != done or not done:
            done = forwards(state)
            await asyncio.sleep(0.1)
        assert request._inbox.empty()
        tokens = state.metrics.registry.get_sample_value("deltaw_input_tokens_count")
        assert tokens is not None
        assert tokens < count / 2
        request.reads.set()
        request.write(b"", more=False)
        await request.end()
        assert [line["index"] for line in request.lines] == list(range(count))

    run(check, tiny_folder)


@pytest.mark.parametrize("reads", [True, False], ids=["computing", "waiting for the client"])
def test_client_that_leaves_cancels_the_rest(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    """When the client leaves, nothing of its request stays in the engine, in tasks or in memory."""
    monkeypatch.setattr(lines, "MAX_UNREAD", 50_000)

    async def check(app: FastAPI, state: State) -> None:
        request = ByHand(app, PATHS["checks"])
        if not reads:
            request.reads.clear()
        asked = (body(i, 50, layers="all", include=None) for i in range(400))
        for one in asked:
            del one["include"]
            request.write(lines_of(one))
        while not forwards(state):
            await asyncio.sleep(0.001)
        if not reads:
            await asyncio.sleep(0.3)
        request.leave()
        await request.end()
        assert len(request.lines) < 400
        assert state.engine.waiting == 0
        after = forwards(state)
        await asyncio.sleep(0.1)
        assert forwards(state) <= after + 1
        del request
        gc.collect()
        kept = [one for one in gc.get_objects() if type(one) is lines.Line]
        assert not kept
        async with client_for(app) as client:
            assert (await client.post(UPDATES, json=body(1))).status_code == 200

    run(check, tiny_folder)


def test_begun_request_is_answered_while_the_service_drains(tiny_folder: Path) -> None:
    """A request whose first line was answered is answered to its end; a new one is refused."""

    async def check(app: FastAPI, state: State) -> None:
        request = ByHand(app, UPDATES)
        request.write(lines_of(body(0)))
        await request.until(lambda: len(request.lines) == 1)
        state.engine.draining = True
        late = ByHand(app, UPDATES)
        late.write(lines_of(body(1)), more=False)
        await late.end()
        assert late.status == 503
        request.write(lines_of(*(body(i) for i in range(9))), more=False)
        await request.end()
        assert [line["status"] for line in request.lines] == [200] * 10

    run(check, tiny_folder)


def test_full_queue_refuses_new_requests_and_no_begun_one(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full queue is a 429 of the whole request before its first answer, and does not end it
    afterwards."""

    async def check(app: FastAPI, state: State) -> None:
        request = ByHand(app, UPDATES)
        request.write(lines_of(body(0)))
        await request.until(lambda: len(request.lines) == 1)
        with held(state):
            monkeypatch.setattr(state.engine, "_active", 0)
            late = ByHand(app, UPDATES)
            late.write(lines_of(body(1), body(2)), more=False)
            await late.end()
            assert late.status == 429
            assert dict(late.sent[0]["headers"])[b"retry-after"]
            request.write(lines_of(body(3)), more=False)
            await queued(state)
            monkeypatch.undo()
        await request.end()
        assert [line["status"] for line in request.lines] == [200, 200]

    run(check, tiny_folder, queue_size=0)


def test_failed_engine_ends_the_request_with_a_last_line(tiny_folder: Path) -> None:
    """When the engine fails, the last line says so, and no line waits for it."""

    async def check(app: FastAPI, state: State) -> None:
        request = ByHand(app, UPDATES)
        request.write(lines_of(body(0)))
        await request.until(lambda: len(request.lines) == 1)
        state.engine.fatal = OutOfMemory("gone")
        request.write(lines_of(body(1)), more=False)
        await request.end()
        assert request.lines[-1]["index"] is None
        assert request.lines[-1]["body"]["code"] == "self_check_failed"

    run(check, tiny_folder)


def test_deadline_of_a_line_starts_when_it_is_queued(tiny_folder: Path) -> None:
    """Each line that is not computed in time gets 504, and lines that come later do not."""

    async def check(app: FastAPI, state: State) -> None:
        request = ByHand(app, UPDATES)
        with held(state):
            request.write(lines_of(body(0), body(1)))
            await queued(state)
            await asyncio.sleep(0.4)
        await request.until(lambda: len(request.lines) == 2)
        await asyncio.sleep(0.4)
        request.write(lines_of(body(2)), more=False)
        await request.end()
        assert [line["status"] for line in request.lines] == [504, 504, 200]

    run(check, tiny_folder, deadline_seconds=0.3)


def test_unexpected_error_of_a_line_is_internal_for_that_line(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the service gives its line a generic 500; the other lines are answered."""

    def fail(model: Any, content: bytes) -> Any:
        if b"[77" in content:
            raise ZeroDivisionError
        return parse(model, content)

    monkeypatch.setattr("service.api.lines.parse", fail)

    async def check(app: FastAPI, _state: State) -> None:
        request = ByHand(app, UPDATES)
        request.write(lines_of(body(0), {"context": [77], "query": [1]}, body(1)), more=False)
        await request.end()
        assert [line["status"] for line in request.lines] == [200, 500, 200]
        assert request.lines[1]["body"]["code"] == "internal"

    run(check, tiny_folder)


def test_whole_request_that_leaves_is_no_answer(tiny_folder: Path) -> None:
    """A client that leaves while it sends gets no status."""

    async def check(app: FastAPI, _state: State) -> None:
        request = ByHand(app, UPDATES)
        request.write(b'{"context"')
        request.leave()
        await request.end()
        assert request.status == 0

    run(check, tiny_folder)
