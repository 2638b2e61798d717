"""The two clients: the same calls, made with threads or on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import wraps
from os import PathLike
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from deltaw_client import resources
from deltaw_client.answers import Received, Reply
from deltaw_client.asking import LATE, Outcome, Patience, Send, failed, some_of_it, steps
from deltaw_client.calls import Call
from deltaw_client.errors import DeltawError, Timeout
from deltaw_client.in_order import async_in_order, in_order
from deltaw_client.sweep import Entry, Pair, Resource, Sweep, Task, sweeping

P = ParamSpec("P")
A = TypeVar("A", bound=Received)

URL = "http://127.0.0.1:8000"
DEADLINE_SECONDS = 120.0
RETRIES = 4


def _method(call: Callable[P, Call[A]]) -> Callable[Concatenate[DeltawClient, P], A]:
    """The method that makes a resource's call and waits."""

    @wraps(call)
    def made(client: DeltawClient, /, *args: P.args, **kwargs: P.kwargs) -> A:
        return client.make(call(*args, **kwargs))

    return made


def _async_method(
    call: Callable[P, Call[A]],
) -> Callable[Concatenate[AsyncDeltawClient, P], Coroutine[Any, Any, A]]:
    """The method that makes a resource's call when awaited."""

    @wraps(call)
    async def made(client: AsyncDeltawClient, /, *args: P.args, **kwargs: P.kwargs) -> A:
        return await client.make(call(*args, **kwargs))

    return made


class DeltawClient:
    """A client that waits; several threads may share one.

    Args:
        url: The service's address.
        api_key: Sent as `Authorization: Bearer`.
        deadline_seconds: Of a call with all its attempts and waits.
        retries: Attempts after the first, where a problem may pass.
        jitter: What is added to a wait of so many seconds; by default up to half of it.
        transport: httpx's, for proxies, certificates or an application in this process.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
        retries: int = RETRIES,
        jitter: Callable[[float], float] = some_of_it,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._patience = Patience(deadline_seconds, retries, jitter)
        self._http = httpx.Client(base_url=url, headers=_key(api_key), transport=transport)

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
            DeltawError: What its last attempt ended in.
        """
        making = steps(call, _request(self._http, call), self._patience)
        outcome: Outcome = None
        try:
            while True:
                step = making.send(outcome)
                outcome = None
                if isinstance(step, Send):
                    outcome = self._send(step)
                else:
                    time.sleep(step.seconds)
        except StopIteration as answered:
            answer: A = answered.value
            return answer

    def _send(self, step: Send) -> Reply | DeltawError:
        """httpx's own limit is for each read, so the deadline is looked at between them."""
        end = time.monotonic() + step.seconds
        step.request.extensions["timeout"] = httpx.Timeout(step.seconds).as_dict()
        try:
            response = self._http.send(step.request, stream=True)
            try:
                pieces = []
                for piece in response.iter_bytes():
                    if time.monotonic() > end:
                        return Timeout(LATE)
                    pieces.append(piece)
            finally:
                response.close()
        except httpx.RequestError as error:
            return failed(error)
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
        """Ask the same of many pairs, a JSON line each in the order of the pairs; see `Sweep`.

        A file that is there already is gone on with: pairs that have an answer in it are left out,
        those that failed are asked again.

        Args:
            pairs: (context, query), or mappings of fields, which come before `parameters`.
            out: The file.
            resource: What is asked of each pair.
            concurrency: Calls at once.
            progress: Whether to show a bar; None does on a terminal, where rich is installed.
            parameters: Of the resource, the same for all pairs.

        Raises:
            OtherSweep: The file is of other pairs or parameters.
            DeltawError: There is no service, or no way into it; what was done is in the file.
            TypeError: A field is unknown.
        """
        with sweeping(pairs, out, resource, parameters, progress) as under_way:
            in_order(self._entry, under_way.tasks, concurrency, under_way.take)
            return under_way.result

    def _entry(self, task: Task) -> Entry | DeltawError:
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


class AsyncDeltawClient:
    """A client for asyncio.

    Args:
        url: The service's address.
        api_key: Sent as `Authorization: Bearer`.
        deadline_seconds: Of a call with all its attempts and waits.
        retries: Attempts after the first, where a problem may pass.
        jitter: What is added to a wait of so many seconds; by default up to half of it.
        transport: httpx's, for proxies, certificates or an application in this process.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
        retries: int = RETRIES,
        jitter: Callable[[float], float] = some_of_it,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._patience = Patience(deadline_seconds, retries, jitter)
        self._http = httpx.AsyncClient(base_url=url, headers=_key(api_key), transport=transport)

    activations = _async_method(resources.activations)
    weight_updates = _async_method(resources.weight_updates)
    equivalence_checks = _async_method(resources.equivalence_checks)
    trajectories = _async_method(resources.trajectories)
    attributions = _async_method(resources.attributions)
    tokenize = _async_method(resources.tokenize)
    model = _async_method(resources.model)

    async def make(self, call: Call[A]) -> A:
        """Make a call.

        Raises:
            DeltawError: What its last attempt ended in.
        """
        making = steps(call, _request(self._http, call), self._patience)
        outcome: Outcome = None
        try:
            while True:
                step = making.send(outcome)
                outcome = None
                if isinstance(step, Send):
                    outcome = await self._send(step)
                else:
                    await asyncio.sleep(step.seconds)
        except StopIteration as answered:
            answer: A = answered.value
            return answer

    async def _send(self, step: Send) -> Reply | DeltawError:
        step.request.extensions["timeout"] = httpx.Timeout(None).as_dict()
        try:
            async with asyncio.timeout(step.seconds):
                response = await self._http.send(step.request)
        except TimeoutError:
            return Timeout(LATE)
        except httpx.RequestError as error:
            return failed(error)
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
        """The same as `DeltawClient.sweep`."""
        with sweeping(pairs, out, resource, parameters, progress) as under_way:
            await async_in_order(self._entry, under_way.tasks, concurrency, under_way.take)
            return under_way.result

    async def _entry(self, task: Task) -> Entry | DeltawError:
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


def _key(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _request(http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
    return http.build_request(call.method, call.path, content=call.body(), headers=call.headers())
