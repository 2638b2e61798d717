"""Server-sent events: the answer to one question, event by event, while it is computed.

The computation never waits for the client, so a slow reader holds no slot of the engine. Events
that the client has not read wait in memory: at most the whole answer, whose size was checked before
any work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import structlog
from fastapi import Response
from starlette.types import Receive, Scope, Send

from schemas.common import Answer
from service.api.exchange import SMALL_ANSWER, ClientLeft, Exchange, gone, off_loop
from service.api.heads import JSON
from service.api.problems import named
from service.api.refusals import instance_of, written
from service.api.stages import record_timings
from service.api.tensors import serialize
from service.engine import Plan, Timings

EVENT_STREAM = "text/event-stream"
DONE = b"data: [DONE]\n\n"
MAX_EVENTS = 64
"""Maximum events that are written at a time."""
log = structlog.get_logger("deltaw")


class Feed:
    """Events on their way from the compute thread to the event loop on which it was made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Answer | None] = asyncio.Queue()

    def emit(self, event: Answer) -> None:
        """Add an event, from any thread."""
        # If the loop is closed, nobody waits for the event any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def close(self) -> None:
        """Mark the end: no event follows."""
        self._events.put_nowait(None)

    async def take(self) -> list[Answer]:
        """Wait for an event, and return it with those already queued. Empty at the end."""
        taken = [await self._events.get()]
        while taken[-1] is not None and len(taken) < MAX_EVENTS and not self._events.empty():
            taken.append(self._events.get_nowait())
        if len(taken) > 1 and taken[-1] is None:
            self.close()
        return [event for event in taken if event is not None]


class EventStream(Response):
    """The response that sends each event as soon as it is known, and `[DONE]` at the end.

    An error before the first event is raised, so that the response gets the error's status. A later
    error is sent as the last event, in place of `[DONE]`.

    Args:
        exchange: The request.
        plan: The question, which feeds `feed`.
        feed: The events.
        last: Forms an event that follows the answer; None: there is none.
    """

    media_type = EVENT_STREAM

    def __init__(
        self,
        exchange: Exchange,
        plan: Plan[Any],
        feed: Feed,
        last: Callable[[Any], Answer | None] = lambda _answer: None,
    ) -> None:
        self.status_code = 200
        self.background = None
        # A buffering proxy, such as nginx, would otherwise hold events back.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._exchange = exchange
        self._plan = plan
        self._feed = feed
        self._last = last
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask the engine and send the events. If the client leaves, its question is cancelled."""
        state = self._exchange.state
        self._exchange.note_rows(self._plan)
        seconds = state.settings.deadline_seconds
        timings = Timings()
        asked = asyncio.ensure_future(state.engine.ask(self._plan, seconds, timings=timings))
        asked.add_done_callback(lambda _: self._feed.close())
        left = asyncio.ensure_future(gone(self._exchange.request))
        left.add_done_callback(lambda _: asked.cancel())
        try:
            with record_timings(scope, timings):
                await self._send(scope, send, asked)
        finally:
            for task in (asked, left):
                task.cancel()
            await asyncio.gather(asked, left, return_exceptions=True)
            state.metrics.response_bytes.observe(self._bytes)

    async def _send(
        self, scope: Scope, send: Send, asked: asyncio.Future[tuple[Any, Timings]]
    ) -> None:
        started = False
        while events := await self._feed.take():
            body = await off_loop(self._is_small, self._written, events)
            if not started:
                head = {"status": 200, "headers": self.raw_headers}
                await send({"type": "http.response.start", **head})
                started = True
            await self._send_part(send, body, more=True)
        if asked.cancelled():
            raise ClientLeft
        if (error := asked.exception()) is None:
            answer, timings = asked.result()
            self._exchange.note_timings(timings)
            last = self._last(answer)
            tail = (b"" if last is None else self._written([last])) + DONE
        elif started and isinstance(error, Exception):
            tail = self._problem(scope, error)
        else:
            raise error
        await self._send_part(send, tail, more=False)

    async def _send_part(self, send: Send, body: bytes, more: bool) -> None:
        self._bytes += len(body)
        await send({"type": "http.response.body", "body": body, "more_body": more})

    @property
    def _is_small(self) -> bool:
        return self._exchange.size <= SMALL_ANSWER

    def _written(self, events: Sequence[Answer]) -> bytes:
        encoding = self._exchange.encoding
        with self._exchange.timed("serialize"):
            return b"".join(b"data: %s\n\n" % serialize(one, JSON, encoding) for one in events)

    def _problem(self, scope: Scope, error: Exception) -> bytes:
        """The event that says what ended the stream. An error that has no code is logged."""
        problem, name = named(error), scope["deltaw.request_id"]
        scope["deltaw.problem"] = problem.code
        if problem.code == "internal":
            log.error("internal error", request_id=name, exc_info=error)
        return b'data: {"error":%s}\n\n' % written(problem, instance_of(scope), name)
