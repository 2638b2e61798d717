"""Asking: a question to the engine, raced against the client's leaving, and its answer to bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request, Response

from service.api.problems import ProblemError
from service.api.state import State, state_of
from service.api.tensors import JSON, Encoding, negotiate, serialize
from service.engine import Model, Question
from service.errors import NeverFits

T = TypeVar("T")


class ClientLeft(Exception):
    """The client is gone; there is nobody to answer."""


@dataclass
class Asking:
    """One request on its way to an answer.

    Args:
        request: The HTTP request.
        media: What the answer will be written as.
        timings: Seconds by the names of `Server-Timing`.
        known: Its entry that says how many rows were known.
    """

    request: Request
    media: str
    timings: dict[str, float] = field(default_factory=dict)
    known: str = ""

    @property
    def state(self) -> State:
        """The application's state."""
        return state_of(self.request)

    @property
    def model(self) -> Model:
        """The resident model; a `Loading` problem until it is there."""
        return self.state.engine.model

    async def off_loop(self, name: str, work: Callable[..., T], *args: Any) -> T:
        """Do work that may take a while on another thread, and note its time."""
        start = time.perf_counter()
        done = await asyncio.to_thread(work, *args)
        self.timings[name] = time.perf_counter() - start
        return done

    async def ask(self, question: Question[T], rows: int) -> T:
        """The engine's answer.

        Args:
            question: A generator that has not been started.
            rows: Rows of all its runs, before any is shared.

        Raises:
            NeverFits: It asks for more rows than any request is granted.
            ClientLeft: The client is gone; the work was dropped.
        """
        state = self.state
        limit = state.settings.max_tokens_per_request
        if rows > limit:
            raise NeverFits(
                "the request asks for more rows than any is granted: ask for fewer at a time",
                limit=limit,
                actual=rows,
            )
        state.metrics.input_tokens.observe(rows)
        asked = asyncio.ensure_future(state.engine.ask(question, state.settings.deadline_seconds))
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
        self.known = f'prefix;desc="{timings.known_rows} of {timings.rows} rows known"'
        self.request.scope["deltaw.rows"] = rows
        return answer

    async def answer(self, content: Mapping[str, Any], encoding: Encoding = "json") -> Response:
        """The response, serialised off the loop."""
        content = {"model": model_summary(self.model), **content}
        body = await self.off_loop("serialize", serialize, content, self.media, encoding)
        self.state.metrics.response_bytes.observe(len(body))
        self.request.scope["deltaw.timings"] = self.timings
        timing = ", ".join(
            f"{name};dur={1000 * self.timings.get(name, 0.0):.3f}"
            for name in ("queue", "tokenize", "forward", "compute", "serialize")
        )
        timing += f", {self.known}" if self.known else ""
        headers = {"Server-Timing": timing, "Cache-Control": "no-store"}
        return Response(body, headers=headers, media_type=self.media)


async def asking(request: Request) -> Asking:
    """The dependency of handlers that answer with tensors."""
    return Asking(request, negotiate(request.headers.get("accept")))


async def asking_plainly(request: Request) -> Asking:
    """The dependency of handlers whose answers hold no tensors: JSON alone."""
    if negotiate(request.headers.get("accept")) != JSON:
        raise ProblemError("not_acceptable")
    return Asking(request, JSON)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def model_summary(model: Model) -> dict[str, Any]:
    """Which weights the numbers are from, as every answer says."""
    return {
        "id": model.id,
        "revision": model.revision,
        "weights_digest": model.weights_digest,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attention": "sdpa",
    }
