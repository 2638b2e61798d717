"""The client for asyncio: the calls of `DeltawClient`, made on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from functools import wraps
from os import PathLike
from typing import Any, Concatenate, ParamSpec, Self

import httpx

from deltaw_client import generation, resources
from deltaw_client.adapters import AsyncAdapters
from deltaw_client.answers import Reply
from deltaw_client.attempts import Attempts
from deltaw_client.calls import A, Call, Outcome, Send
from deltaw_client.client import BaseClient, Part
from deltaw_client.connection import connection_error
from deltaw_client.errors import DeltawError, Timeout
from deltaw_client.events import EventStream
from deltaw_client.ledger import open_sweep
from deltaw_client.lines import Item, Line, LinesResource, Pair, read_items
from deltaw_client.merge import merge_async
from deltaw_client.methods import async_method
from deltaw_client.sweep import Resource, Sweep
from schemas.model import Limits

P = ParamSpec("P")


def _stream_method(
    call: Callable[P, Call[A]],
) -> Callable[Concatenate[AsyncDeltawClient, P], AsyncGenerator[A]]:
    """Turn a streamed resource into a method that gives each event."""

    @wraps(call)
    def made(client: AsyncDeltawClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[A]:
        return client.stream(call(*args, **kwargs))

    return made


class AsyncDeltawClient(BaseClient[httpx.AsyncClient, httpx.AsyncBaseTransport]):
    """A client for asyncio. Takes the arguments of `DeltawClient`."""

    _make_http = httpx.AsyncClient

    activations = async_method(resources.activations)
    weight_updates = async_method(resources.weight_updates)
    equivalence_checks = async_method(resources.equivalence_checks)
    trajectories = async_method(resources.trajectories)
    attributions = async_method(resources.attributions)
    tokenize = async_method(resources.tokenize)
    model = async_method(resources.model)
    completions = async_method(generation.completions)
    stream_completions = _stream_method(generation.stream_completions)
    models = async_method(generation.models)

    @property
    def adapters(self) -> AsyncAdapters:
        """The adapters' methods: `create`, `list`, `get`, `delete`, `download`."""
        return AsyncAdapters(self)

    async def make(self, call: Call[A]) -> A:
        """Make a call, like `DeltawClient.make`."""
        making, outcome = self._steps(call), None
        try:
            while True:
                outcome = await self._carry_out(making.send(outcome))
        except StopIteration as answered:
            answer: A = answered.value
            return answer

    def stream(self, call: Call[A]) -> AsyncGenerator[A]:
        """Make a call that is answered in events, like `DeltawClient.stream`."""
        return self._ask(EventStream(call, self._policy))

    async def _carry_out(self, step: Send | float) -> Outcome:
        if not isinstance(step, Send):
            await asyncio.sleep(step)
            return None
        step.request.extensions["timeout"] = httpx.Timeout(None).as_dict()
        try:
            async with asyncio.timeout(step.seconds):
                response = await self._http.send(step.request)
        except TimeoutError:
            return Timeout()
        except httpx.RequestError as error:
            return connection_error(error)
        return Reply(response.status_code, response.headers, response.content)

    async def lines(
        self,
        resource: LinesResource,
        bodies: Iterable[Pair],
        *,
        concurrency: int = 2,
        deadline_seconds: float | None = None,
        **parameters: Any,
    ) -> AsyncGenerator[Line]:
        """Ask about many bodies in few requests, like `DeltawClient.lines`."""
        items = read_items(bodies, resource, parameters)
        limits = (await self.model()).limits
        async with aclosing(self._lines(items, limits, concurrency, deadline_seconds)) as lines:
            async for line in lines:
                yield line

    async def sweep(
        self,
        pairs: Iterable[Pair],
        *,
        out: str | PathLike[str],
        resource: Resource = "weight_updates",
        concurrency: int = 2,
        deadline_seconds: float | None = None,
        progress: bool | None = None,
        **parameters: Any,
    ) -> Sweep:
        """Ask the same about many pairs, like `DeltawClient.sweep`."""
        plan = list(read_items(pairs, resource, parameters))
        loaded = await self.model()
        with open_sweep(plan, loaded, out, progress) as ledger:
            lines = self._lines(ledger.waiting, loaded.limits, concurrency, deadline_seconds)
            async with aclosing(lines):
                async for line in lines:
                    ledger.take(line)
            return ledger.result()

    def _lines(
        self, items: Iterable[Item], limits: Limits, concurrency: int, seconds: float | None
    ) -> AsyncGenerator[Line]:
        batches = self._batches(items, limits, concurrency, seconds)
        return merge_async(self._ask, batches, concurrency)

    async def _ask(self, attempts: Attempts[Part]) -> AsyncGenerator[Part]:
        """Carry out attempts, like `DeltawClient._ask`."""
        while attempts.wait is not None:
            await asyncio.sleep(attempts.wait)
            failure: DeltawError | None = None
            try:
                request = attempts.request(self._http)
                request.extensions["timeout"] = httpx.Timeout(None).as_dict()
                async with asyncio.timeout(attempts.seconds_left()):
                    response = await self._http.send(request, stream=True)
                attempts.begin(response)
                async with aclosing(response):
                    pieces = response.aiter_bytes()
                    while True:
                        async with asyncio.timeout(attempts.seconds_left()):
                            piece = await anext(pieces, b"")
                        if not piece:
                            break
                        for part in attempts.receive(piece):
                            yield part
            except TimeoutError:
                failure = Timeout()
            except httpx.RequestError as error:
                failure = connection_error(error)
            except DeltawError as error:
                failure = error
            for part in attempts.finish(failure):
                yield part

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
