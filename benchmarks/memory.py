"""W8, under load: what is resident beside the weights while 64 requests are under way at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.agreement import Disagreement
from benchmarks.bench import Bench
from benchmarks.process import Serving, serving
from benchmarks.start import MiB, float32_bytes
from benchmarks.table import Bar, Row

CLIENTS = 64
LENGTHS = (22, 128, 256)
RESIDENT = Bar("<=", 600.0)
KINDS: Sequence[tuple[str, dict[str, Any]]] = (
    ("/v1/weight-updates", {}),
    ("/v1/equivalence-checks", {}),
    ("/v1/weight-updates", {"baseline": "alone", "include": ["factors", "bias", "next_tokens"]}),
    ("/v1/equivalence-checks", {"scope": "projection"}),
    ("/v1/trajectories", {"layers": [-1]}),
)


def rows(bench: Bench) -> Iterator[Row]:
    """One row: the peak, with what the libraries and known prefixes have of it beside."""
    settings = {"model": bench.checkpoint, "device": bench.device, "threads": bench.threads}
    weights = float32_bytes(Path(bench.folder))
    asked = [request(bench, i) for i in range(CLIENTS)]
    with (
        serving(**settings, deadline_seconds=600) as service,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        before = service.resident
        clients = [service.another() for _ in asked]
        service.forget_peak()
        for answer in pool.map(answered, clients, asked):
            if answer.get("holds") is False:
                raise Disagreement("a check under load does not hold")
        peak, after = service.peak, service.resident
        kept = known_bytes(service.another())
    yield Row(
        "W8",
        f"{CLIENTS} requests at once, {bench.name}",
        "peak resident − weights",
        (peak - weights) / MiB,
        "MB",
        RESIDENT,
        1,
        {
            "weights MB": weights / MiB,
            "before MB": (before - weights) / MiB,
            "afterwards MB": (after - weights) / MiB,
            "known prefixes MB": kept / MiB,
        },
    )


def request(bench: Bench, i: int) -> tuple[str, dict[str, Any]]:
    """Kinds and lengths mixed; every context is another one."""
    path, more = KINDS[i % len(KINDS)]
    length = min(LENGTHS[i % len(LENGTHS)], bench.model.n_positions)
    *context, query = bench.ids(length, seed=5000 + i)
    return path, {"context": context, "query": [query], **more}


def answered(client: Serving, asked: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """The answer to one request."""
    path, body = asked
    told: dict[str, Any] = json.loads(client.ask("POST", path, body).body)
    return told


def known_bytes(service: Serving) -> float:
    """What known prefixes take, as `/metrics` says."""
    lines = service.ask("GET", "/metrics").body.decode().splitlines()
    name = "deltaw_prefix_cache_bytes "
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))
