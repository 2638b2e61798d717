"""Exchange: one request on its way through the engine to its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from fastapi import Request, Response

from service.api.state import State, state_of
from service.api.tensors import JSON, SAFETENSORS, Encoding, negotiate, serialize, tensor_bytes
from service.engine import Model, Question, Work
from service.errors import NeverFits, TooManyItems

T = TypeVar("T")
TOKEN_BYTES = 256
"""More than a token takes where it is echoed, but for the longest."""
SMALL_TEXT, SMALL_ANSWER = 1 << 13, 1 << 18
"""Bytes up to which the event loop does the work itself: another thread is woken in more time."""
FLOAT32_BYTES = 4
"""Of a number, by which the most work that is granted is measured."""


class ClientLeft(Exception):
    """The client is gone; there is nobody to answer."""


@dataclass
class Exchange:
    """One request on its way to an answer.

    Args:
        request: The HTTP request.
        media: What the answer will be written as.
        timings: Seconds by the names of `Server-Timing`.
        known: Its entry that says how many rows were known.
        encoding: How tensors are written in JSON.
        size: About how many bytes the answer has.
    """

    request: Request
    media: str
    timings: dict[str, float] = field(default_factory=dict)
    known: str = ""
    encoding: Encoding = "json"
    size: int = 0

    @property
    def state(self) -> State:
        """The application's state."""
        return state_of(self.request)

    @property
    def model(self) -> Model:
        """The resident model; a `Loading` problem until it is there."""
        return self.state.engine.model

    async def tokenized(self, work: Callable[..., T], *args: Any) -> T:
        """Do what needs the tokenizer."""
        size = self.request.scope.get("deltaw.body_bytes", 0)
        return await self.timed("tokenize", size <= SMALL_TEXT, work, *args)

    async def timed(self, name: str, small: bool, work: Callable[..., T], *args: Any) -> T:
        """Do some work and note its time; on another thread where it is not small."""
        start = time.perf_counter()
        done = work(*args) if small else await asyncio.to_thread(work, *args)
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start
        return done

    async def ask(
        self,
        question: Question[T],
        rows: int,
        layers: Sequence[int],
        dtype: torch.dtype | None = None,
    ) -> T:
        """The engine's answer.

        Args:
            question: A generator that has not been started.
            rows: Rows of all its runs, before any is shared.
            layers: Those that are read; the deepest says how far the rows go.
            dtype: What it is computed in; None: the model's.

        Raises:
            NeverFits: It asks for more rows, or more rows × layers × bytes, than any request is
                granted.
            ClientLeft: The client is gone; the work was dropped.
        """
        state = self.state
        work = Work(rows, 1 + max(layers), (dtype or self.model.dtype).itemsize)
        granted = state.settings.max_tokens_per_request
        bounds = {
            "rows": (granted, rows),
            "rows × layers × bytes": (granted * self.model.n_layers * FLOAT32_BYTES, work.size),
        }
        for what, (limit, actual) in bounds.items():
            if actual > limit:
                raise NeverFits(
                    f"the request asks for more {what} than any is granted: ask for less at a time",
                    limit=limit,
                    actual=actual,
                )
        state.metrics.input_tokens.observe(rows)
        asked = asyncio.ensure_future(
            state.engine.ask(question, state.settings.deadline_seconds, work)
        )
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

    def count_prompts(self, prompts: Sequence[Any], field: str = "prompts") -> None:
        """Refuse more prompts than one request may bring.

        Args:
            prompts: What it brings.
            field: Where in the body.

        Raises:
            TooManyItems: There are more.
        """
        limit = self.state.settings.max_prompts
        if len(prompts) > limit:
            raise TooManyItems(
                "the request brings too many prompts",
                at=(field,),
                limit=limit,
                actual=len(prompts),
            )

    def expect(
        self,
        entries: int,
        tokens: int,
        numbers: int = 0,
        encoding: Encoding = "json",
        entry_bytes: int = 2048,
    ) -> None:
        """Refuse an answer that would be too large, before any work.

        Args:
            entries: How many entries it has.
            tokens: How many tokens it echoes.
            numbers: How many float32 numbers its tensors hold.
            encoding: How they are written in JSON.
            entry_bytes: More than an entry takes beside its tensors.

        Raises:
            NeverFits: It would have more bytes than any answer is granted.
        """
        self.encoding = encoding
        tensors = tensor_bytes(numbers, self.media, encoding)
        self.size = tensors + entries * entry_bytes + tokens * TOKEN_BYTES
        limit = self.state.settings.max_response_bytes
        if self.size > limit:
            raise NeverFits(
                "the answer would be too large: ask for fewer layers or positions, a reduction, "
                "or safetensors",
                limit=limit,
                actual=self.size,
            )

    async def answer(self, content: Mapping[str, Any]) -> Response:
        """The response: what is said beside the model."""
        content = {"model": model_summary(self.model), **content}
        body = await self.timed(
            "serialize",
            self.size <= SMALL_ANSWER,
            serialize,
            content,
            self.media,
            self.encoding,
        )
        self.state.metrics.response_bytes.observe(len(body))
        self.request.scope["deltaw.timings"] = self.timings
        timing = ", ".join(
            f"{name};dur={1000 * self.timings.get(name, 0.0):.3f}"
            for name in ("queue", "tokenize", "forward", "compute", "serialize")
        )
        timing += f", {self.known}" if self.known else ""
        headers = {"Server-Timing": timing, "Cache-Control": "no-store"}
        return Response(body, headers=headers, media_type=self.media)


async def exchange(request: Request) -> Exchange:
    """The dependency of handlers that answer with tensors."""
    return Exchange(request, negotiate(request.headers.get("accept"), (JSON, SAFETENSORS)))


async def plain_exchange(request: Request) -> Exchange:
    """The dependency of handlers whose answers hold no tensors: JSON alone."""
    return Exchange(request, negotiate(request.headers.get("accept"), (JSON,)))


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
