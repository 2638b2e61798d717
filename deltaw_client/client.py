"""The synchronous client, and what it shares with the one for asyncio."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import wraps
from os import PathLike
from threading import Event
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import httpx

from deltaw_client import generation, resources
from deltaw_client.adapters import Adapters
from deltaw_client.answers import Reply
from deltaw_client.attempts import Attempts
from deltaw_client.calls import A, Call, Outcome, RetryPolicy, Send, Steps, random_jitter
from deltaw_client.connection import H, connection_error, http_client
from deltaw_client.errors import DeltawError, Timeout
from deltaw_client.events import EventStream
from deltaw_client.ledger import open_sweep
from deltaw_client.lines import Batch, Item, Line, LinesResource, Pair, read_items, split
from deltaw_client.merge import merge
from deltaw_client.methods import method
from deltaw_client.sweep import Resource, Sweep
from schemas.model import Limits

P = ParamSpec("P")
T = TypeVar("T")
Part = TypeVar("Part")


def _stream_method(
    call: Callable[P, Call[A]],
) -> Callable[Concatenate[DeltawClient, P], Generator[A]]:
    """Turn a streamed resource into a method that gives each event."""

    @wraps(call)
    def made(client: DeltawClient, /, *args: P.args, **kwargs: P.kwargs) -> Generator[A]:
        return client.stream(call(*args, **kwargs))

    return made


class BaseClient(Generic[H, T]):
    """Arguments of both clients, their defaults, and the calls that those make."""

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

    def _batches(
        self, items: Iterable[Item], limits: Limits, concurrency: int, seconds: float | None
    ) -> Iterator[Batch]:
        """Group items into requests. A deadline in seconds replaces the client's."""
        if concurrency < 1:
            raise ValueError("concurrency must be at least 1")
        own = self._policy
        policy = own if seconds is None else replace(own, deadline_seconds=seconds)
        return (Batch(bodies, policy) for bodies in split(items, limits))


class DeltawClient(BaseClient[httpx.Client, httpx.BaseTransport]):
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

    activations = method(resources.activations)
    weight_updates = method(resources.weight_updates)
    equivalence_checks = method(resources.equivalence_checks)
    trajectories = method(resources.trajectories)
    attributions = method(resources.attributions)
    tokenize = method(resources.tokenize)
    model = method(resources.model)
    completions = method(generation.completions)
    stream_completions = _stream_method(generation.stream_completions)
    models = method(generation.models)

    @property
    def adapters(self) -> Adapters:
        """The adapters' methods: `create`, `list`, `get`, `delete`, `download`."""
        return Adapters(self)

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

    def stream(self, call: Call[A]) -> Generator[A]:
        """Make a call that is answered in events. Closing the iterator ends the request.

        Raises:
            DeltawError: The last attempt failed, or the stream broke.
        """
        return self._ask(EventStream(call, self._policy), Event())

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

    def lines(
        self,
        resource: LinesResource,
        bodies: Iterable[Pair],
        *,
        concurrency: int = 2,
        deadline_seconds: float | None = None,
        **parameters: Any,
    ) -> Generator[Line]:
        """Ask about many bodies in few requests, and give each answer or error when it arrives.

        The bodies are the lines of NDJSON requests, within the limits that `model` reports; each
        request reads its bodies when it begins. Bodies without an answer are asked again if the
        failure is retryable. Closing the iterator ends the requests.

        Args:
            resource: Name of the method that asks about one body.
            bodies: Mappings of fields, which replace those of `parameters`, or (context, query).
            concurrency: Maximum number of concurrent requests. By default the service computes one
                while the client sends the other; more help if several services share the work.
            deadline_seconds: Seconds until the next answer must have arrived, with all attempts and
                waits; None takes the client's deadline.
            parameters: Fields of every body. Tensors travel in base64, unless `encoding` is `json`.

        Raises:
            DeltawError: The service cannot be reached or refuses a whole request.
            TypeError: The resource does not have such a field.
            ValueError: The concurrency is below 1.
        """
        items = read_items(bodies, resource, parameters)
        limits = self.model().limits
        return self._lines(items, limits, concurrency, deadline_seconds)

    def sweep(
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
        """Ask the same about many pairs and write a JSON line for each, in the order of the pairs.

        The sweep resumes a file that exists: it keeps the answers and asks failed pairs again. Each
        line is written when its answer arrives; at the end the lines are put in order.

        Args:
            pairs: (context, query), or mappings of fields, which replace those of `parameters`.
            out: Path of the file.
            resource: Resource to ask about each pair.
            concurrency: Maximum number of concurrent requests, as in `lines`.
            deadline_seconds: Seconds until the next answer must have arrived, as in `lines`.
            progress: Whether to show a bar; None shows it on a terminal if rich is installed.
            parameters: Fields of every request.

        Raises:
            OtherSweep: The file has other pairs or parameters, or another model's answers.
            DeltawError: The service cannot be reached or refuses a whole request; the file keeps
                the answers so far.
            TypeError: The resource does not have such a field.
            ValueError: The concurrency is below 1.
        """
        plan = list(read_items(pairs, resource, parameters))
        loaded = self.model()
        with open_sweep(plan, loaded, out, progress) as ledger:
            lines = self._lines(ledger.waiting, loaded.limits, concurrency, deadline_seconds)
            with closing(lines):
                for line in lines:
                    ledger.take(line)
            return ledger.result()

    def _lines(
        self, items: Iterable[Item], limits: Limits, concurrency: int, seconds: float | None
    ) -> Generator[Line]:
        batches = self._batches(items, limits, concurrency, seconds)
        return merge(self._ask, batches, concurrency)

    def _ask(self, attempts: Attempts[Part], stopped: Event) -> Generator[Part]:
        """Carry out attempts. httpx limits only each read, as in `_carry_out`."""
        while attempts.wait is not None and not stopped.wait(attempts.wait):
            failure: DeltawError | None = None
            try:
                request = attempts.request(self._http)
                request.extensions["timeout"] = httpx.Timeout(attempts.seconds_left()).as_dict()
                with closing(self._http.send(request, stream=True)) as response:
                    attempts.begin(response)
                    for piece in response.iter_bytes():
                        yield from attempts.receive(piece)
            except httpx.RequestError as error:
                failure = connection_error(error)
            except DeltawError as error:
                failure = error
            yield from attempts.finish(failure)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
