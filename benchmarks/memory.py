"""W8: start to ready, and memory beside the weights: at rest, and under 64 requests at once."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from safetensors import safe_open

from benchmarks.agreement import Disagreement
from benchmarks.bench import Bench, token_ids
from benchmarks.engine import BUNDLED
from benchmarks.results import Row
from benchmarks.server import Answer, Request, parse_metrics, running_server

STARTS = 5
"""Starts to time; 2 where fewer seconds are given for a comparison."""
CLIENTS = 64
LENGTHS = (22, 128, 256)
MiB = 1 << 20
LIBRARIES = """
import os, torch, transformers, fastapi, uvicorn
from benchmarks.server import memory_bytes
print(memory_bytes(os.getpid(), "VmRSS"))
"""
KINDS: Sequence[tuple[str, dict[str, Any]]] = (
    ("/v1/weight-updates", {}),
    ("/v1/equivalence-checks", {}),
    ("/v1/weight-updates", {"baseline": "alone", "include": ["factors", "bias", "next_tokens"]}),
    ("/v1/equivalence-checks", {"scope": "projection"}),
    ("/v1/trajectories", {"layers": [-1]}),
)


def starts(bench: Bench) -> Iterator[Row]:
    """W8: starts of the bundled model (or the chosen one), and its memory at rest."""
    checkpoint = bench.chosen or "bundled"
    weights = _weight_bytes(BUNDLED if checkpoint == "bundled" else bench.folder)
    seconds, imports, libraries, ready, worked = (list[float]() for _ in range(5))
    count = STARTS if bench.seconds >= STARTS else 2
    for _ in range(count):
        with running_server(**{**bench.settings, "model": checkpoint}) as server:
            seconds.append(server.start_seconds)
            ready.append((server.resident - weights) / MiB)
            _check(map(server.post, _requests(20, LENGTHS[:1])))
            worked.append((server.resident - weights) / MiB)
        start = time.perf_counter()
        command = [sys.executable, "-c", LIBRARIES]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        imports.append(time.perf_counter() - start)
        libraries.append(int(output) / MiB)
    name = Path(checkpoint).name
    medians = {"importing the libraries s": median(imports), "slowest s": max(seconds)}
    yield Row("W8", name, "start to ready", median(seconds), "s", None, count, medians)
    medians = {"weights MiB": weights / MiB, "libraries alone MiB": median(libraries)}
    for when, values in (("when ready", ready), ("after 20 requests", worked)):
        figure = f"resident − weights, {when}"
        yield Row("W8", name, figure, median(values), "MiB", None, count, medians)


def peak_under_load(bench: Bench) -> Iterator[Row]:
    """W8: peak of the resident memory under 64 requests at once."""
    weights = _weight_bytes(bench.folder)
    with running_server(**bench.settings) as server, ThreadPoolExecutor(CLIENTS) as clients:
        before = server.resident
        server.reset_peak()
        _check(clients.map(server.post, _requests(CLIENTS, LENGTHS)))
        peak, after = server.peak, server.resident
        cached = parse_metrics(server.get("/metrics").body)["deltaw_prefix_cache_bytes"]
    sizes = {"before": before - weights, "afterwards": after - weights, "prefix cache": cached}
    medians = {f"{name} MiB": value / MiB for name, value in {"weights": weights, **sizes}.items()}
    case, figure = f"{CLIENTS} requests at once, {bench.name}", "peak resident − weights"
    yield Row("W8", case, figure, (peak - weights) / MiB, "MiB", medians=medians)


def _requests(count: int, lengths: Sequence[int]) -> list[Request]:
    """Requests of all kinds and lengths, each with a context of its own."""
    requests = []
    for i in range(count):
        path, options = KINDS[i % len(KINDS)]
        *context, query = token_ids(lengths[i % len(lengths)], 5000 + i)
        requests.append(Request(path, {"context": context, "query": [query], **options}))
    return requests


def _check(answers: Iterable[Answer]) -> None:
    """Refuse to report figures of a service whose equivalence checks do not hold."""
    if any(answer.json.get("holds") is False for answer in answers):
        raise Disagreement("an equivalence check does not hold")


def _weight_bytes(folder: Path) -> int:
    """Size of a checkpoint's weights in float32, in bytes."""
    numbers = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as stored:
            for name in stored.keys():  # noqa: SIM118 – safetensors' handle is not a mapping
                numbers += math.prod(stored.get_slice(name).get_shape())
    return 4 * numbers
