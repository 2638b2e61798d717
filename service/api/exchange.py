"""Exchange: one request on its way to an answer.

A handler parses, plans, asks and answers. A request whose client leaves is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel

from schemas.common import Answer, Encoding
from service.api.state import State, state_of
from service.api.tensors import JSON, SAFETENSORS, negotiate, serialize, tensor_bytes
from service.engine import AnswerSize, Model, Plan
from service.errors import NeverFits, TooManyItems

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
        timings: Seconds by the names of `Server-Timing`.
        cached: Entry of `Server-Timing` that says how many rows were cached.
        encoding: Form of the tensors in a JSON answer.
        size: Upper estimate of the answer's bytes.
    """

    request: Request
    media: str
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

    @property
    def body_bytes(self) -> int:
        """Bytes of the request's body."""
        return int(self.request.scope.get("deltaw.body_bytes", 0))

    async def timed(self, name: str, small: bool, work: Callable[..., A], *args: Any) -> A:
        """Do some work and record its time; in another thread unless it is small."""
        start = time.perf_counter()
        done = work(*args) if small else await asyncio.to_thread(work, *args)
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start
        return done

    async def plan(self, make: Callable[[Model, Body], Plan[A]], body: Body) -> Plan[A]:
        """Plan the answer to a body, and refuse it if it exceeds a limit of one request.

        Args:
            make: The planning function of the resource.
            body: The parsed body.

        Raises:
            NeverFits: The work or the answer exceeds the limit of one request.
        """
        plan = await self.timed("tokenize", self.body_bytes <= SMALL_TEXT, make, self.model, body)
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
        rows = plan.work.rows
        state.metrics.input_tokens.observe(rows)
        self.request.scope["deltaw.rows"] = rows
        asked = asyncio.ensure_future(state.engine.ask(plan, state.settings.deadline_seconds))
        gone = asyncio.ensure_future(_gone(self.request))
        try:
            await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise ClientLeft
            answer, timings = asked.result()
        finally:
            for task in (asked, gone):
                task.cancel()
        state.metrics.queue_wait.observe(timings.queue)
        self.timings |= {
            "queue": timings.queue,
            "forward": timings.forward,
            "compute": timings.compute,
        }
        self.cached = f'prefix;desc="{timings.cached_rows} of {rows} rows cached"'
        return answer

    async def answer(self, answer: Answer) -> Response:
        """Write the answer as a response."""
        small = self.size <= SMALL_ANSWER
        body = await self.timed("serialize", small, serialize, answer, self.media, self.encoding)
        self.state.metrics.response_bytes.observe(len(body))
        self.request.scope["deltaw.timings"] = self.timings
        timing = ", ".join(
            f"{name};dur={1000 * self.timings.get(name, 0.0):.3f}"
            for name in ("queue", "tokenize", "forward", "compute", "serialize")
        )
        timing += f", {self.cached}" if self.cached else ""
        headers = {"Server-Timing": timing, "Cache-Control": "no-store"}
        return Response(body, headers=headers, media_type=self.media)


async def exchange(request: Request) -> Exchange:
    """The dependency of handlers whose answers hold tensors."""
    return Exchange(request, negotiate(request.headers.get("accept"), (JSON, SAFETENSORS)))


async def plain_exchange(request: Request) -> Exchange:
    """The dependency of handlers whose answers hold no tensors, and so are JSON only."""
    return Exchange(request, negotiate(request.headers.get("accept"), (JSON,)))


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
