"""The sync and the async client: the same calls, made with threads or on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import closing
from functools import wraps
from os import PathLike
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import httpx

from deltaw_client import resources
from deltaw_client.answers import Reply
from deltaw_client.calls import A, Call, Outcome, RetryPolicy, Send, Steps, random_jitter
from deltaw_client.connection import H, connection_error, http_client
from deltaw_client.errors import DeltawError, Timeout
from deltaw_client.ledger import open_sweep
from deltaw_client.pool import run_in_order, run_in_order_async
from deltaw_client.sweep import Entry, Pair, Resource, Sweep, Task, plan_sweep

P = ParamSpec("P")
T = TypeVar("T")


def _method(call: Callable[P, Call[A]]) -> Callable[Concatenate[DeltawClient, P], A]:
    """Turn a resource into a method that makes its call and waits for the answer."""

    @wraps(call)
    def made(client: DeltawClient, /, *args: P.args, **kwargs: P.kwargs) -> A:
        return client.make(call(*args, **kwargs))

    return made


def _async_method(
    call: Callable[P, Call[A]],
) -> Callable[Concatenate[AsyncDeltawClient, P], Coroutine[Any, Any, A]]:
    """Turn a resource into a coroutine method that makes its call."""

    @wraps(call)
    async def made(client: AsyncDeltawClient, /, *args: P.args, **kwargs: P.kwargs) -> A:
        return await client.make(call(*args, **kwargs))

    return made


class _Client(Generic[H, T]):
    """Arguments of both clients, and their defaults."""

    _make_http: Callable[..., H]

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        deadline_seconds: float = 120.0,
        retries: int = 4,
        jitter: Callable[[float], float] = random_jitter,
        transport: T | None = None,
    ) -> None:
        self._policy = RetryPolicy(deadline_seconds, retries, jitter)
        self._http: H = http_client(self._make_http, url, api_key, transport)

    def _steps(self, call: Call[A]) -> Steps[A]:
        return self._policy.steps(call, call.request(self._http))


class DeltawClient(_Client[httpx.Client, httpx.BaseTransport]):
    """A synchronous client. Threads may share one.

    Args:
        url: Address of the service.
        api_key: Key of the service, sent as `Authorization: Bearer`.
        deadline_seconds: Seconds for a call with all its attempts and waits.
        retries: Maximum number of attempts after the first, made after retryable errors.
        jitter: Function from a wait in seconds to the seconds to add to it; by default random, up
            to half the wait.
        transport: httpx transport, for example to an application in this process. By default HTTP,
            with the proxies and certificates that the environment names.

    Raises:
        InvalidConfiguration: The URL, the key or an environment variable cannot be used.
    """

    _make_http = httpx.Client

    activations = _method(resources.activations)
    weight_updates = _method(resources.weight_updates)
    equivalence_checks = _method(resources.equivalence_checks)
    trajectories = _method(resources.trajectories)
    attributions = _method(resources.attributions)
    tokenize = _method(resources.tokenize)
    model = _method(resources.model)

    def make(self, call: Call[A]) -> A:
        """Make a call.

        Raises:
            DeltawError: The last attempt failed.
        """
        making, outcome = self._steps(call), None
        try:
            while True:
                outcome = self._carry_out(making.send(outcome))
        except StopIteration as answered:
            answer: A = answered.value
            return answer

    def _carry_out(self, step: Send | float) -> Outcome:
        """Sleep, or send. httpx limits only each read, so check the deadline after each."""
        if not isinstance(step, Send):
            time.sleep(step)
            return None
        end = time.monotonic() + step.seconds
        step.request.extensions["timeout"] = httpx.Timeout(step.seconds).as_dict()
        try:
            with closing(self._http.send(step.request, stream=True)) as response:
                pieces = []
                for piece in response.iter_bytes():
                    if time.monotonic() > end:
                        return Timeout()
                    pieces.append(piece)
        except httpx.RequestError as error:
            return connection_error(error)
        return Reply(response.status_code, response.headers, b"".join(pieces))

    def sweep(
        self,
        pairs: Iterable[Pair],
        *,
        out: str | PathLike[str],
        resource: Resource = "weight_updates",
        concurrency: int = 8,
        progress: bool | None = None,
        **parameters: Any,
    ) -> Sweep:
        """Ask the same about many pairs and write a JSON line for each, in the order of the pairs.

        The sweep resumes a file that exists: it keeps the answers and asks failed pairs again.

        Args:
            pairs: (context, query), or mappings of fields, which replace those of `parameters`.
            out: Path of the file.
            resource: Resource to ask about each pair.
            concurrency: Maximum number of concurrent calls.
            progress: Whether to show a bar; None shows it on a terminal if rich is installed.
            parameters: Fields of every request.

        Raises:
            OtherSweep: The file has other pairs or parameters, or another model's answers.
            DeltawError: The service cannot be reached or refuses every pair; the file keeps the
                answers so far.
            TypeError: The resource does not have such a field.
        """
        plan = plan_sweep(pairs, resource, parameters)
        with open_sweep(plan, self.model(), out, progress) as ledger:
            run_in_order(self._entry, ledger.waiting, concurrency, ledger.take)
            return ledger.result()

    def _entry(self, task: Task) -> Entry:
        try:
            return task.answered(self.make(task.call))
        except DeltawError as error:
            return task.failed(error)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncDeltawClient(_Client[httpx.AsyncClient, httpx.AsyncBaseTransport]):
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

    async def sweep(
        self,
        pairs: Iterable[Pair],
        *,
        out: str | PathLike[str],
        resource: Resource = "weight_updates",
        concurrency: int = 8,
        progress: bool | None = None,
        **parameters: Any,
    ) -> Sweep:
        """Ask the same about many pairs, like `DeltawClient.sweep`."""
        plan = plan_sweep(pairs, resource, parameters)
        with open_sweep(plan, await self.model(), out, progress) as ledger:
            await run_in_order_async(self._entry, ledger.waiting, concurrency, ledger.take)
            return ledger.result()

    async def _entry(self, task: Task) -> Entry:
        try:
            return task.answered(await self.make(task.call))
        except DeltawError as error:
            return task.failed(error)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
