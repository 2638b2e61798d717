"""W5: sixteen clients at once over HTTP, against one client that asks the same in a row.

Every request has another context, and no prefix is kept on any side. What packing brings is the
same at once against a service with `batching = off`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.agreement import agree_cancelling, agree_captured
from benchmarks.bench import Bench
from benchmarks.process import Serving, serving
from benchmarks.table import Bar, Row
from benchmarks.timing import Taken, in_turn

CLIENTS = 16
EACH = 2
TOKENS = 22
THROUGHPUT = Bar(">=", 1.5)
PATH = "/v1/weight-updates"


def rows(bench: Bench) -> Iterator[Row]:
    """One row for the throughput, one for what packing has of it."""
    settings = {"model": bench.checkpoint, "device": bench.device, "threads": bench.threads}
    settings |= {"prefix_cache_bytes": 0}
    bodies = requests(bench)
    with ExitStack() as stack:
        packing = stack.enter_context(serving(**settings))
        single = stack.enter_context(serving(**settings, batching=False))
        pool = stack.enter_context(ThreadPoolExecutor(CLIENTS))
        agree(packing, pool, bodies)
        times = in_turn(
            {
                "in a row": _timed(packing, _in_a_row(packing, bodies)),
                "at once": _timed(packing, _at_once(packing, pool, bodies)),
                "at once, batching off": _timed(single, _at_once(single, pool, bodies)),
            },
            torch.device("cpu"),
            bench.seconds,
        )
    last = bench.model.n_layers - 1
    case = f"{CLIENTS} clients × {EACH}, layer {last}, {TOKENS} tokens"
    yield Row.of_times("W5", case, times, "in a row", "at once", "times", THROUGHPUT)
    yield Row.of_times("W5", case, times, "at once, batching off", "at once", "times", None)


def requests(bench: Bench) -> list[Any]:
    """Each with a context of its own; for the last layer, so that every block is walked."""
    bodies = []
    for i in range(CLIENTS * EACH):
        *context, query = bench.ids(TOKENS, seed=100 + i)
        layers = [bench.model.n_layers - 1]
        bodies.append({"context": context, "query": [query], "layers": layers})
    return bodies


def agree(service: Serving, pool: ThreadPoolExecutor, bodies: Sequence[Any]) -> None:
    """Packed with fifteen others, a request is answered as it is alone.

    Raises:
        Disagreement: One is not.
    """
    alone = [service.ask("POST", PATH, body).body for body in bodies]
    for i, (one, other) in enumerate(zip(_at_once(service, pool, bodies)(), alone, strict=True)):
        (packed,), (single,) = (json.loads(answer)["updates"] for answer in (one, other))
        norms = single["mlp_in"]
        lengths = norms["norm_with_context"] + norms["norm_baseline"]
        (a, output), (a_alone, output_alone) = (
            [torch.tensor(told["factors"][name]["data"]) for name in ("input", "output")]
            for told in (packed, single)
        )
        agree_captured(f"the input factor of request {i}", a, a_alone)
        agree_cancelling(
            f"the output factor of request {i}",
            output,
            output_alone,
            lengths / norms["norm_difference"],
        )


def _in_a_row(service: Serving, bodies: Sequence[Any]) -> Callable[[], list[bytes]]:
    return lambda: [service.ask("POST", PATH, body).body for body in bodies]


def _at_once(
    service: Serving, pool: ThreadPoolExecutor, bodies: Sequence[Any]
) -> Callable[[], list[bytes]]:
    """Sixteen clients on connections of their own; each asks again when it has its answer."""
    clients = [service.another() for _ in range(CLIENTS)]
    shares = [bodies[i * EACH : (i + 1) * EACH] for i in range(CLIENTS)]

    def ask(client: Serving, share: Sequence[Any]) -> list[bytes]:
        return [client.ask("POST", PATH, body).body for body in share]

    return lambda: [answer for of_client in pool.map(ask, clients, shares) for answer in of_client]


def _timed(service: Serving, work: Callable[[], object]) -> Callable[[], Taken]:
    """Seconds as the clients have them, and of the service's processor."""

    def run() -> Taken:
        start, worked = time.perf_counter(), service.processor
        work()
        return Taken(time.perf_counter() - start, service.processor - worked)

    return run
