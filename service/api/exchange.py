"""Exchange: one request on its way to an answer.

A handler parses, plans, asks and answers. A request whose client leaves is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel

from schemas.common import Answer, Encoding
from service.api.heads import JSON
from service.api.stages import STAGES, count, note_stage, record_timings
from service.api.state import State, state_of
from service.api.tensors import negotiate, serialize, tensor_bytes
from service.engine import AnswerSize, Model, Plan, Timings
from service.errors import NeverFits, TooManyItems
from service.telemetry import Metrics

A = TypeVar("A")
Body = TypeVar("Body", bound=BaseModel)
TOKEN_BYTES = 256
"""Upper estimate of a token's size in a JSON answer, in bytes; only very long tokens exceed it."""
SMALL_TEXT, SMALL_ANSWER = 1 << 10, 1 << 18
"""Bytes up to which the event loop does the work itself, because waking a thread takes longer."""
FLOAT32_BYTES = 4


class ClientLeft(Exception):
    """The client closed the connection before it had the answer."""


@dataclass
class Exchange:
    """One request on its way to an answer.

    Args:
        request: The HTTP request.
        media: Media type of the answer.
        body_bytes: Bytes of the request's body.
        timings: Seconds by the names of `Server-Timing`.
        cached: Entry of `Server-Timing` that says how many rows were cached.
        encoding: Form of the tensors in a JSON answer.
        size: Upper estimate of the answer's bytes.
    """

    request: Request
    media: str
    body_bytes: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    cached: str = ""
    encoding: Encoding = "json"
    size: int = 0

    @property
    def state(self) -> State:
        """The application's state."""
        return state_of(self.request)

    @property
    def model(self) -> Model:
        """The resident model. Raises `Loading` until it is loaded."""
        return self.state.engine.model

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Record the time of a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            self.timings[stage] = self.timings.get(stage, 0.0) + seconds
            note_stage(self.request.scope, stage, start, seconds)

    def prepare(self, resource: Resource, body: BaseModel) -> Plan[Any] | Answer:
        """Check a body and plan its answer. Raises the errors of the resource."""
        with self.timed("tokenize"):
            return resource.prepare(self, body)

    def checked(self, plan: Plan[A], body: BaseModel) -> Plan[A]:
        """The plan for a body, unless it exceeds a limit of one request.

        Raises:
            NeverFits: The work or the answer exceeds the limit of one request.
        """
        self.encoding = getattr(body, "encoding", "json")
        self.check_size(plan.size)
        self.check_work(plan)
        return plan

    def check_work(self, plan: Plan[Any]) -> None:
        """Refuse more work than one request may ask for.

        Raises:
            NeverFits: The rows, or rows × layers × bytes, exceed the limit.
        """
        granted = self.state.settings.max_tokens_per_request
        largest = granted * self.model.n_layers * FLOAT32_BYTES
        for what, limit, actual in (
            ("rows", granted, plan.work.rows),
            ("rows × layers × bytes", largest, plan.work.size),
        ):
            if actual > limit:
                raise NeverFits(
                    f"The request needs {actual:,} {what}; the limit is {limit:,}. Split it.",
                    limit=limit,
                    actual=actual,
                )

    def check_size(self, size: AnswerSize) -> None:
        """Refuse an answer that would be too large, before it is computed.

        Raises:
            NeverFits: The answer would have more bytes than the limit.
        """
        tensors = tensor_bytes(size.numbers, self.media, self.encoding)
        self.size = tensors + size.entries * size.entry_bytes + size.tokens * TOKEN_BYTES
        limit = self.state.settings.max_response_bytes
        if self.size > limit:
            raise NeverFits(
                f"The answer would have up to {self.size:,} bytes; the limit is {limit:,}. Ask for "
                "fewer layers or positions, for a reduction, or for safetensors.",
                limit=limit,
                actual=self.size,
            )

    def check_count(self, prompts: Sequence[Any], field: str = "prompts") -> None:
        """Refuse more prompts than one request may have.

        Args:
            prompts: The prompts of the request.
            field: Their field in the body.

        Raises:
            TooManyItems: There are more.
        """
        limit = self.state.settings.max_prompts
        if len(prompts) > limit:
            raise TooManyItems(
                f"`{field}` has {len(prompts):,} entries; the limit is {limit:,}. Split them.",
                at=(field,),
                limit=limit,
                actual=len(prompts),
            )

    async def ask(self, plan: Plan[A]) -> A:
        """Ask the engine.

        Raises:
            ClientLeft: The client left; its question is cancelled.
        """
        state = self.state
        self.note_rows(plan)
        timings = Timings()
        asked = state.engine.ask(plan, state.settings.deadline_seconds, timings=timings)
        with record_timings(self.request.scope, timings):
            answer, _ = await self.wait(asked)
        self.note_timings(timings)
        self.cached = f'prefix;desc="{timings.cached_rows} of {plan.work.rows} rows cached"'
        return answer

    async def wait(self, work: Coroutine[Any, Any, A]) -> A:
        """Wait for work to end, unless the client leaves first.

        Raises:
            ClientLeft: The client left; the work is cancelled.
        """
        working = asyncio.ensure_future(work)
        left = asyncio.ensure_future(gone(self.request))
        try:
            await asyncio.wait({working, left}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientLeft
            return working.result()
        finally:
            for task in (working, left):
                task.cancel()

    def note_rows(self, plan: Plan[Any]) -> None:
        """Export the rows of a plan to the metrics, and add them to the request's in the log."""
        self.state.metrics.input_tokens.observe(plan.work.rows)
        count(self.request.scope, "rows", plan.work.rows)

    def note_timings(self, timings: Timings) -> None:
        """Record the times that the engine reports."""
        self.state.metrics.queue_wait.observe(timings.queue)
        self.timings |= {
            "queue": timings.queue,
            "forward": timings.forward,
            "compute": timings.compute,
        }

    @property
    def milliseconds(self) -> dict[str, float]:
        """Milliseconds of each stage, for the client."""
        return {name: round(1000 * self.timings.get(name, 0.0), 3) for name in STAGES}

    def write(self, answer: Answer) -> bytes:
        """Write the answer as bytes."""
        with self.timed("serialize"):
            body = serialize(answer, self.media, self.encoding)
        self.state.metrics.response_bytes.observe(len(body))
        return body

    async def respond(self, answer: Answer) -> Response:
        """Write the answer as a response."""
        body = await off_loop(self.size <= SMALL_ANSWER, self.write, answer)
        timing = ", ".join(f"{name};dur={ms:.3f}" for name, ms in self.milliseconds.items())
        timing += f", {self.cached}" if self.cached else ""
        headers = {"Server-Timing": timing, "Cache-Control": "no-store"}
        return Response(body, headers=headers, media_type=self.media)


async def plain_exchange(request: Request) -> Exchange:
    """The dependency of handlers without a body, whose answers are JSON."""
    return Exchange(request, negotiate(request.headers.get("accept"), (JSON,)))


Prepare: TypeAlias = Callable[[Exchange, Any], Plan[Any] | Answer]
"""From an exchange and its parsed body to a plan, or to the answer if it needs no forward."""


@dataclass(frozen=True)
class Resource:
    """A resource that answers bodies: a row of a table.

    Args:
        path: Path of the resource.
        request: Model of the request's body.
        answer: Type of the answer.
        prepare: Checks a body against the limits and plans its answer.
        text: Summary and description of the operation in the OpenAPI document.
        tensors: Whether the answer holds tensors, and so may be a safetensors file.
        prompts: Fields of the body that hold prompts. All others are options.
        problems: Codes of problems that only this resource and few others have.
        count: Exports what an answer found to the metrics.
        is_small: Whether a body with this number of bytes is planned on the event loop.
    """

    path: str
    request: type[BaseModel]
    answer: Any
    prepare: Prepare
    text: str
    tensors: bool = False
    prompts: Sequence[str] = ("context", "query")
    problems: Sequence[str] = ()
    count: Callable[[Metrics, Any], None] = lambda _metrics, _answer: None
    is_small: Callable[[Any, int], bool] = lambda _body, size: size <= SMALL_TEXT


async def off_loop(small: bool, work: Callable[..., A], *args: Any) -> A:
    """Do some work, in another thread unless it is small."""
    return work(*args) if small else await asyncio.to_thread(work, *args)


async def gone(request: Request) -> None:
    """Wait until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
