"""W8: from the start of `deltaw serve` until it is ready, and what it keeps in memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from safetensors import safe_open

import service.checkpoints
from benchmarks.bench import Bench
from benchmarks.checkpoint import LIKE_BUNDLED, random_checkpoint
from benchmarks.process import Serving, serving
from benchmarks.table import Bar, Row

STARTS = 5
MiB = 1024 * 1024
READY = Bar("<=", 6.0)
RESIDENT = Bar("<=", 600.0)
LIBRARIES = """
import torch, transformers, fastapi, uvicorn
from benchmarks.process import resident
import os
print(resident(os.getpid()))
"""
PAIR = {"context": "The capital of Germany is", "query": " Berlin"}
MIXED: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/v1/weight-updates", PAIR),
    ("POST", "/v1/equivalence-checks", PAIR),
    ("POST", "/v1/activations", {"prompts": ["The capital of Germany is Berlin"]}),
    ("POST", "/v1/weight-updates", {**PAIR, "baseline": "alone", "include": ["next_tokens"]}),
    ("GET", "/v1/model", None),
)


def rows(bench: Bench) -> Iterator[Row]:
    """One row for the start, one for the memory when it is ready, one after twenty requests."""
    checkpoint = _checkpoint(bench)
    weights = float32_bytes(Path(checkpoint))
    starts, imports, libraries, ready, worked = [], [], [], [], []
    for _ in range(STARTS):
        with serving(model=checkpoint, device=bench.device, threads=bench.threads) as running:
            starts.append(running.seconds)
            ready.append((running.resident - weights) / MiB)
            _work(running)
            worked.append((running.resident - weights) / MiB)
        seconds, held = _libraries()
        imports.append(seconds)
        libraries.append(held / MiB)
    name = Path(checkpoint).name
    beside = {"weights MB": weights / MiB, "libraries alone MB": median(libraries)}
    yield Row(
        "W8",
        name,
        "start to ready",
        median(starts),
        "s",
        READY,
        STARTS,
        {"importing libraries s": median(imports), "slowest s": max(starts)},
    )
    for when, figures in (("when ready", ready), ("after 20 requests", worked)):
        figure = f"resident − weights, {when}"
        yield Row("W8", name, figure, median(figures), "MB", RESIDENT, STARTS, beside)


def float32_bytes(folder: Path) -> int:
    """How large a checkpoint's weights are in float32."""
    numbers = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as stored:
            for name in stored.keys():  # noqa: SIM118 (safetensors' handle is not a mapping)
                values = 1
                for length in stored.get_slice(name).get_shape():
                    values *= length
                numbers += values
    return 4 * numbers


def _checkpoint(bench: Bench) -> str:
    """The folder that was asked for, else the bundled one's, else that of one of its shape."""
    if bench.chosen is not None and bench.chosen != "bundled":
        return bench.chosen
    bundled = Path(service.checkpoints.__path__[0]) / "bundled"
    if (bundled / "model.safetensors").exists():
        return str(bundled)
    return str(random_checkpoint(LIKE_BUNDLED, bench.cache))


def _work(running: Serving) -> None:
    """Twenty requests of every kind, each check of which holds.

    Raises:
        RuntimeError: One does not.
    """
    for i in range(20):
        method, path, body = MIXED[i % len(MIXED)]
        answer = json.loads(running.ask(method, path, body).body)
        if answer.get("holds") is False:
            raise RuntimeError(f"{path}: a check does not hold")


def _libraries() -> tuple[float, int]:
    """Seconds and resident bytes of a process that imports what the service is built on."""
    start = time.perf_counter()
    told = subprocess.run(
        [sys.executable, "-c", LIBRARIES], check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start, int(told.stdout)
