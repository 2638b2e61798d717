"""The client for asyncio: the calls of `DeltawClient`, made on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from functools import wraps
from os import PathLike
from typing import Any, Concatenate, ParamSpec, Self

import httpx

from deltaw_client import resources
from deltaw_client.answers import Reply
from deltaw_client.calls import A, Call, Outcome, Send
from deltaw_client.client import BaseClient
from deltaw_client.connection import connection_error
from deltaw_client.errors import DeltawError, Timeout
from deltaw_client.ledger import open_sweep
from deltaw_client.lines import Batch, Item, Line, LinesResource, Pair, read_items
from deltaw_client.merge import merge_async
from deltaw_client.sweep import Resource, Sweep
from schemas.model import Limits

P = ParamSpec("P")


def _async_method(
    call: Callable[P, Call[A]],
) -> Callable[Concatenate[AsyncDeltawClient, P], Coroutine[Any, Any, A]]:
    """Turn a resource into a coroutine method that makes its call."""

    @wraps(call)
    async def made(client: AsyncDeltawClient, /, *args: P.args, **kwargs: P.kwargs) -> A:
        return await client.make(call(*args, **kwargs))

    return made


class AsyncDeltawClient(BaseClient[httpx.AsyncClient, httpx.AsyncBaseTransport]):
    """A client for asyncio. Takes the arguments of `DeltawClient`."""

    _make_http = httpx.AsyncClient

    activations = _async_method(resources.activations)
    weight_updates = _async_method(resources.weight_updates)
    equivalence_checks = _async_method(resources.equivalence_checks)
    trajectories = _async_method(resources.trajectories)
    attributions = _async_method(resources.attributions)
    tokenize = _async_method(resources.tokenize)
    model = _async_method(resources.model)

    async def make(self, call: Call[A]) -> A:
        """Make a call, like `DeltawClient.make`."""
        making, outcome = self._steps(call), None
        try:
            while True:
                outcome = await self._carry_out(making.send(outcome))
        except StopIteration as answered:
            answer: A = answered.value
            return answer

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

    async def _ask(self, batch: Batch) -> AsyncGenerator[Line]:
        """Carry out the attempts of a batch, like `DeltawClient._ask`."""
        while batch.wait is not None:
            await asyncio.sleep(batch.wait)
            failure: DeltawError | None = None
            try:
                request = batch.request(self._http)
                request.extensions["timeout"] = httpx.Timeout(None).as_dict()
                async with asyncio.timeout(batch.seconds_left()):
                    response = await self._http.send(request, stream=True)
                batch.begin(response)
                async with aclosing(response):
                    pieces = response.aiter_bytes()
                    while True:
                        async with asyncio.timeout(batch.seconds_left()):
                            piece = await anext(pieces, b"")
                        if not piece:
                            break
                        for line in batch.receive(piece):
                            yield line
            except TimeoutError:
                failure = Timeout()
            except httpx.RequestError as error:
                failure = connection_error(error)
            except DeltawError as error:
                failure = error
            for line in batch.finish(failure):
                yield line

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
