"""Clients that put load on a fleet, and an account of all their requests.

`benchmarks.load` checks the requests against the log of one process. This module checks the answers
themselves, because a fleet has many logs, and its front may answer instead of a replica.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Literal

import httpx

from benchmarks.cluster.account import Account, Outcome, account, agree, judge, norms
from benchmarks.cluster.questions import Body, affinity, questions, token_ids
from deltaw_client import DeltawClient, DeltawError, ProblemError

UPDATES = "/v1/weight-updates"
ANSWER_SECONDS = 120.0
"""Seconds until a request counts as lost. The service's deadline is 60 s."""
CACHED = re.compile(r'prefix;desc="(\d+) of (\d+) rows cached"')
Kind = Literal["raw", "deltaw"]


def client_of(url: str) -> httpx.Client:
    """Return an httpx client, which keeps its connections open and does not retry."""
    return httpx.Client(base_url=url, timeout=ANSWER_SECONDS, trust_env=False)


def hits(
    url: str,
    header: bool = True,
    contexts: int = 8,
    queries: int = 20,
    tokens: int = 400,
    clients: int = 4,
    seed: int = 0,
) -> float:
    """Return the share of rows that the replicas had cached, according to `Server-Timing`.

    Args:
        url: Address of the service.
        header: Whether requests have the context's key as a header.
        contexts: Number of contexts.
        queries: Number of queries for each context.
        tokens: Tokens of a context.
        clients: Number of concurrent clients.
        seed: Seed of the contexts. A second call with the same seed finds all of them cached.

    Raises:
        httpx.HTTPError: A request was lost or refused.
    """
    bodies = iter(questions(contexts, queries, tokens, seed))
    lock = threading.Lock()

    def ask() -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        with client_of(url) as client:
            while True:
                with lock:
                    body = next(bodies, None)
                if body is None:
                    return found
                headers = affinity(body) if header else {}
                answer = client.post(UPDATES, json=body, headers=headers).raise_for_status()
                found.append(cached_rows(answer.headers))

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask) for _ in range(clients)]
        rows = [row for one in asking for row in one.result()]
    return sum(cached for cached, _ in rows) / sum(total for _, total in rows)


def cached_rows(headers: Mapping[str, str]) -> tuple[int, int]:
    """Return the number of rows of a request that came from the cache, and of all its rows."""
    found = CACHED.search(headers.get("server-timing", ""))
    if found is None:
        raise ValueError("the answer's Server-Timing does not count cached rows")
    return int(found[1]), int(found[2])


def latency(url: str, n: int = 200, warm_up: int = 20) -> dict[str, float]:
    """Return the median milliseconds of a probe and of an update with a cached context.

    Args:
        url: Address of the service.
        n: Number of measured requests of each kind, sent one after the other.
        warm_up: Number of requests of each kind before the measured ones.
    """
    body = {"context": token_ids(64, "latency"), "query": [7], "layers": [-1]}
    headers = affinity(body)
    with client_of(url) as client:
        kinds: Mapping[str, Callable[[], httpx.Response]] = {
            "livez": lambda: client.get("/livez"),
            "weight-updates": lambda: client.post(UPDATES, json=body, headers=headers),
        }
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(warm_up + n):
            for kind, send in kinds.items():
                start = time.perf_counter()
                send().raise_for_status()
                taken[kind].append(1000 * (time.perf_counter() - start))
    return {kind: median(times[warm_up:]) for kind, times in taken.items()}


class Load:
    """Outcomes of clients that send requests until they are told to stop.

    The clients go through the same list of bodies, each from another start, and compare each answer
    with the expected norms.
    """

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        """Outcomes so far. Appending to a list needs no lock."""
        self.stopped = threading.Event()
        self.start = time.perf_counter()

    @property
    def answered(self) -> int:
        """Number of right answers so far."""
        return sum(one.right for one in list(self.outcomes))

    def await_answers(self, count: int, seconds: float = 120.0) -> None:
        """Wait for `count` further right answers.

        Raises:
            TimeoutError: They did not arrive within `seconds`.
        """
        wanted, end = self.answered + count, time.monotonic() + seconds
        while self.answered < wanted:
            if time.monotonic() > end:
                raise TimeoutError(f"fewer than {count} right answers in {seconds:g} s: {self}")
            time.sleep(0.02)

    def account(self) -> Account:
        """Return the account of all requests that ended."""
        ended = list(self.outcomes)
        return account(ended, self.start, time.perf_counter())

    def __str__(self) -> str:
        return str(self.account())


@contextmanager
def loading(
    url: str,
    clients: int = 8,
    kind: Kind = "raw",
    bodies: Sequence[Body] | None = None,
) -> Iterator[Load]:
    """Send requests until the block ends, then wait for those in progress.

    Before the load, each body is sent once. Later answers have to agree with the answer to that.

    Args:
        url: Address of the service.
        clients: Number of concurrent clients.
        kind: `raw` sends each request once with httpx; `deltaw` uses `DeltawClient`. Both send the
            context's key as a header.
        bodies: Bodies of weight updates; None takes 8 contexts with 4 queries each.
    """
    asked = questions(queries=4) if bodies is None else bodies
    with client_of(url) as client:
        expected = [
            norms(client.post(UPDATES, json=body).raise_for_status().json()) for body in asked
        ]
    with ExitStack() as stack, ThreadPoolExecutor(clients) as pool:
        senders = [
            stack.enter_context(raw_sender(url) if kind == "raw" else deltaw_sender(url))
            for _ in range(clients)
        ]
        load = Load()

        def ask(number: int, send: Send) -> None:
            position = number * len(asked) // clients
            while not load.stopped.is_set():
                body, wanted = asked[position % len(asked)], expected[position % len(asked)]
                position, start = position + 1, time.perf_counter()
                refused, lost = send(body, wanted)
                end = time.perf_counter()
                load.outcomes.append(Outcome(end, end - start, refused, lost))
                if lost:  # avoids thousands of requests to a service that is down
                    load.stopped.wait(0.1)

        asking = [pool.submit(ask, *item) for item in enumerate(senders)]
        try:
            yield load
        finally:
            load.stopped.set()
        for one in asking:
            one.result()


def run(
    url: str,
    seconds: float,
    clients: int,
    bodies: Sequence[Body] | None = None,
) -> Account:
    """Send raw requests for `seconds`, and return their account.

    Args:
        url: Address of the service.
        seconds: Seconds until the clients stop sending requests.
        clients: As in `loading`.
        bodies: As in `loading`.
    """
    with loading(url, clients, bodies=bodies) as load:
        time.sleep(seconds)
    return load.account()


Send = Callable[[Body, Sequence[float]], tuple[str, str]]
"""Sends a body and judges the answer; returns the problem's code and the kind of the loss."""


@contextmanager
def raw_sender(url: str) -> Iterator[Send]:
    """Yield a sender without retries, which has its own connection."""
    with client_of(url) as client:

        def send(body: Body, wanted: Sequence[float]) -> tuple[str, str]:
            try:
                answer = client.post(UPDATES, json=body, headers=affinity(body))
            except httpx.HTTPError as error:
                return "", f"{type(error).__name__}: {error}"
            return judge(answer, wanted)

        yield send


@contextmanager
def deltaw_sender(url: str) -> Iterator[Send]:
    """Yield a sender that uses `DeltawClient`."""
    with DeltawClient(url, deadline_seconds=ANSWER_SECONDS, retries=2) as client:

        def send(body: Body, wanted: Sequence[float]) -> tuple[str, str]:
            try:
                answer = client.weight_updates(**body, include=[], encoding="json")
            except ProblemError as error:
                return error.problem.code, ""
            except DeltawError as error:
                return "", f"{type(error).__name__}: {error}"
            return "", "" if agree(norms(json.loads(answer.content)), wanted) else "wrong body"

        yield send
