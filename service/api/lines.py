"""NDJSON: many questions in one request, one per line, and one answer line each.

Four tasks work on a request at once. One reads lines, one prepares them, one asks the engine, and
one writes the answers. Consecutive lines with the same options are asked as one question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from schemas.common import Answer
from schemas.problems import PROBLEMS
from service.api.bodies import parse, require_uncompressed
from service.api.channel import Channel, first_error
from service.api.exchange import SMALL_ANSWER, Exchange, Resource, off_loop
from service.api.heads import JSON, NDJSON
from service.api.line_reading import Sent, check_announced, read_lines
from service.api.problems import named
from service.api.refusals import ProblemError, instance_of, written
from service.api.request_log import GUARD
from service.api.stages import count, record_timings
from service.api.state import state_of
from service.api.tensors import negotiate
from service.engine import Model, Plan, Timings, joined
from service.errors import DeadlineExceeded, Draining, Loading, QueueFull, SelfCheckFailed

MAX_UNREAD = 8 * 1024 * 1024
"""Maximum bytes of answers that the client has not read. Computing then pauses."""
PREPARED_BYTES = 1 << 12
"""Bytes of short lines that one thread prepares at a time."""
WRITTEN_BYTES = 1 << 16
"""Bytes of short answers that are written at a time."""
PROBLEM_BYTES = 2048
"""Upper estimate of a problem's bytes."""
ENDS = (Draining, Loading, QueueFull, SelfCheckFailed)
"""Errors of the engine that are not about a line. They end the request."""
log = structlog.get_logger("deltaw")


@dataclass(eq=False)
class Line:
    """One line on its way to its answer.

    Args:
        sent: The line of the request.
        ask: The line as an exchange of its own.
        options: Values of the fields that are no prompts.
        plan: The question to ask; None once the answer is known.
        found: The answer, or the problem.
    """

    sent: Sent
    ask: Exchange
    options: list[Any] | None = None
    plan: Plan[Any] | None = None
    found: Answer | ProblemError | None = None

    @property
    def size(self) -> int:
        """Upper estimate of the bytes of the answer."""
        return self.ask.size + PROBLEM_BYTES


def answer_lines(request: Request, resource: Resource) -> Response:
    """The response to a request whose body has one question per line.

    Raises:
        ProblemError: The request as a whole is refused.
        Loading, SelfCheckFailed: There is no model that could answer.
    """
    require_uncompressed(request)
    check_announced(request)
    negotiate(request.headers.get("accept"), (NDJSON,))
    _ = state_of(request).engine.model
    return LinesResponse(request, resource)


class LinesResponse(Response):
    """The response that reads, computes and writes lines at once.

    Until an answer is known, an error of the whole request is raised, so that it gets a status of
    its own. From then on it is the last line.
    """

    media_type = NDJSON

    def __init__(self, request: Request, resource: Resource) -> None:
        self.status_code = 200
        self.background = None
        # A buffering proxy, such as nginx, would otherwise hold lines back.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._request = request
        self._resource = resource
        self._state = state_of(request)
        self._batching = self._state.settings.batching
        self._sent = Channel[Sent](lambda line: line.size)
        self._prepared = Channel[Line](self._share, 1.0)
        self._answered = Channel[Line](lambda line: line.size, MAX_UNREAD)
        self._begun = False
        self._ended_by: Exception | None = None
        request.scope.update({"deltaw.lines": 0, "deltaw.failed_lines": 0})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer all lines, or as many as can be until something ends the request."""
        if guard := scope.get("state", {}).get(GUARD):
            guard.streams()
        reading = read_lines(self._request, receive, self._sent)
        work = [asyncio.ensure_future(task) for task in (reading, self._prepare(), self._compute())]
        writing = asyncio.ensure_future(self._write(send))
        try:
            await first_error(writing, work)
        except (ProblemError, *ENDS) as error:
            if not self._begun:
                raise
            for task in work:
                task.cancel()
            self._ended_by = error
            self._answered.close()
            await writing
        finally:
            for task in (*work, writing):
                task.cancel()
            await asyncio.gather(*work, writing, return_exceptions=True)

    async def _prepare(self) -> None:
        """Parse and plan lines while the engine computes those before them."""
        while sent := await self._sent.take(PREPARED_BYTES):
            self._sent.free(sent)
            for line in await asyncio.to_thread(self._lines, sent):
                await self._prepared.room([line])
                self._prepared.put(line)
        self._prepared.close()

    def _lines(self, sent: Iterable[Sent]) -> list[Line]:
        return [self._line(one) for one in sent]

    def _line(self, sent: Sent) -> Line:
        """Parse and plan a line. An error becomes its answer."""
        line = Line(sent, Exchange(self._request, JSON, sent.size))
        try:
            limit = self._state.settings.max_body_bytes
            if sent.size > limit:
                raise ProblemError("body_too_large", limit=limit, actual=sent.size)
            body = parse(self._resource.request, sent.content)
            names = type(body).model_fields.keys() - set(self._resource.prompts)
            line.options = [getattr(body, name) for name in sorted(names)]
            prepared = line.ask.prepare(self._resource, body)
        except ENDS:
            raise
        except Exception as error:
            line.found = self._named(error, line)
        else:
            if isinstance(prepared, Plan):
                line.plan = prepared
            else:
                line.found = prepared
        return line

    async def _compute(self) -> None:
        """Ask the engine one batch of lines after another."""
        limit = 1.0 if self._batching else 0.0
        while batch := await self._prepared.take(limit, _alike):
            self._prepared.free(batch)
            await self._answered.room(batch)
            for line in batch:
                if line.plan is not None:
                    line.ask.note_rows(line.plan)
            await self._answer(batch)
        self._answered.close()

    async def _answer(self, batch: list[Line]) -> None:
        """Ask a batch. If that fails, ask its halves, so that an error hits only its own line."""
        try:
            if batch[0].plan is not None:
                await self._ask(batch)
        except ENDS:
            raise
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, DeadlineExceeded):
                middle = len(batch) // 2
                for half in (batch[:middle], batch[middle:]):
                    sent = [line.sent for line in half]
                    await self._answer(await asyncio.to_thread(self._lines, sent))
                return
            for line in batch:
                line.found = self._named(error, line)
        for line in batch:
            self._begun = True
            line.plan = None
            self._answered.put(line)

    async def _ask(self, batch: list[Line]) -> None:
        """Ask the engine for the answers to a batch."""
        engine = self._state.engine
        plans = [line.plan for line in batch if line.plan is not None]
        together = await off_loop(len(plans) == 1, _together, engine.model, plans)
        timings, seconds = Timings(), self._state.settings.deadline_seconds
        with record_timings(self._request.scope, timings):
            answers, _ = await engine.ask(together, seconds, accepted=self._begun, timings=timings)
        found = [answers] if len(plans) == 1 else answers
        for line, answer in zip(batch, found, strict=True):
            line.ask.note_timings(timings)
            line.found = answer

    async def _write(self, send: Send) -> None:
        """Send each answer as soon as it is known."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        started = False
        while lines := await self._answered.take(WRITTEN_BYTES):
            small = sum(line.size for line in lines) <= SMALL_ANSWER
            body = await off_loop(small, self._written, lines)
            if not started:
                await send(start)
                started = True
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self._answered.free(lines)
        if not started:
            await send(start)
        last = b"" if self._ended_by is None else self._last_line(self._ended_by)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _written(self, lines: Iterable[Line]) -> bytes:
        return b"".join(self._answer_line(line) for line in lines)

    def _answer_line(self, line: Line) -> bytes:
        """Write the answer line of a line, and export it to the metrics."""
        metrics, ask, found, body = self._state.metrics, line.ask, line.found, b""
        if isinstance(found, Answer):
            try:
                body = ask.write(found)
                self._resource.count(metrics, found)
            except Exception as error:
                found = self._named(error, line)
        status, name = 200, self._name(line)
        if isinstance(found, ProblemError):
            status, body = PROBLEMS[found.code].status, self._problem(found, name)
            metrics.rejected.labels(found.code).inc()
            count(self._request.scope, "failed_lines", 1)
        metrics.lines.labels(self._resource.path, str(status)).inc()
        count(self._request.scope, "lines", 1)
        known = {"index": line.sent.index, "status": status, "request_id": name}
        head = orjson.dumps({**known, "timings_ms": ask.milliseconds})
        return b'%s,"body":%s}\n' % (head[:-1], body)

    def _last_line(self, error: Exception) -> bytes:
        """Write the line that says what ended the request."""
        problem = named(error)
        scope = self._request.scope
        scope["deltaw.problem"] = problem.code
        body = self._problem(problem, scope["deltaw.request_id"])
        return b'{"index":null,"status":%d,"body":%s}\n' % (PROBLEMS[problem.code].status, body)

    def _named(self, error: Exception, line: Line) -> ProblemError:
        """The problem of a line. An error that has no code is logged."""
        problem = named(error)
        if problem.code == "internal":
            log.error("internal error", request_id=self._name(line), exc_info=error)
        return problem

    def _name(self, line: Line) -> str:
        """The request id of a line."""
        return f"{self._request.scope['deltaw.request_id']}-{line.sent.index}"

    def _problem(self, problem: ProblemError, name: str) -> bytes:
        return written(problem, instance_of(self._request.scope), name)

    def _share(self, line: Line) -> float:
        """Share of a batch that a line takes: by its rows, or by the size of its answer."""
        rows = line.plan.work.rows if line.plan is not None else 0
        return max(rows / self._state.engine.row_budget, line.size / MAX_UNREAD)


def _alike(first: Line, other: Line) -> bool:
    """Whether two lines may be asked as one question."""
    return None not in (first.plan, other.plan) and first.options == other.options


def _together(model: Model, plans: Sequence[Plan[Any]]) -> Plan[Any]:
    return plans[0] if len(plans) == 1 else joined(model, plans)
