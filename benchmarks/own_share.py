"""W6: what the service takes of a request beside the forward, and what an answer's bytes take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load

from benchmarks.agreement import Disagreement, agree_captured
from benchmarks.bench import Bench
from benchmarks.process import Answered, serving
from benchmarks.table import Bar, Row
from benchmarks.timing import in_turn
from service.analysis.pairs import resolve_pair
from service.analysis.weight_updates import WeightUpdates, weight_updates
from service.api.tensors import JSON, SAFETENSORS, serialize
from service.engine import drive

REQUESTS = 100
CONTEXT, QUERY = "The capital of Germany is", " Berlin"
OWN = Bar("<=", 3.0)
SERIALISED = {"JSON": Bar("<=", 10.0), "safetensors": Bar("<=", 1.0)}


def rows(bench: Bench) -> Iterator[Row]:
    """One row for the request, one for each way to write twelve layers' factors."""
    yield _own(bench)
    yield from _serialising(bench)


def _own(bench: Bench) -> Row:
    layer = min(5, bench.model.n_layers - 1)
    body = {"context": CONTEXT, "query": QUERY, "layers": [layer]}
    settings = {"model": bench.checkpoint, "device": bench.device, "threads": bench.threads}
    answered: list[Answered] = []
    floor: list[float] = []
    with serving(**settings) as service:
        agree(bench, layer, service.ask("POST", "/v1/weight-updates", body))
        for _ in range(REQUESTS):
            answered.append(service.ask("POST", "/v1/weight-updates", body))
            floor.append(service.ask("GET", "/livez").seconds)
    parts = ("queue", "tokenize", "compute", "serialize")
    return Row(
        "W6",
        f"layer {layer}, JSON, {bench.name}",
        "request − forward",
        1000 * median(one.seconds - one.timings["forward"] for one in answered),
        "ms",
        OWN,
        REQUESTS,
        {
            "request ms": 1000 * median(one.seconds for one in answered),
            **{f"{p} ms": 1000 * median(one.timings[p] for one in answered) for p in parts},
            "/livez ms": 1000 * median(floor),
        },
    )


def agree(bench: Bench, layer: int, answered: Answered) -> None:
    """The factors that came over HTTP are those of the engine in this process.

    Raises:
        Disagreement: They are not.
    """
    (told,) = json.loads(answered.body)["updates"]
    pair = resolve_pair(bench.model, CONTEXT, QUERY, "matched", "last")
    (mine,) = drive(bench.model, weight_updates(bench.model, pair, [layer], {"factors"})).updates
    if mine.factors is None:
        raise Disagreement("the factors are not there")
    for name, expected in (("input", mine.factors.input), ("output", mine.factors.output)):
        agree_captured(f"the {name} factor", torch.tensor(told["factors"][name]["data"]), expected)


def _serialising(bench: Bench) -> Iterator[Row]:
    model = bench.model
    pair = resolve_pair(model, bench.ids(21), bench.ids(1), "matched", "last")
    layers = [i % model.n_layers for i in range(12)]
    found = drive(model, weight_updates(model, pair, layers, {"factors"}))
    content = {"updates": found.updates}
    agree_written(found, content)
    times = in_turn(
        {
            "JSON": lambda: serialize(content, JSON, "json"),
            "base64": lambda: serialize(content, JSON, "base64"),
            "safetensors": lambda: serialize(content, SAFETENSORS, "json"),
        },
        torch.device("cpu"),
        min(bench.seconds, 5.0),
    )
    beside = {f"{way} ms": value for way, value in times.milliseconds.items()}
    for way, value in times.milliseconds.items():
        yield Row(
            "W6",
            f"12 layers' factors, {way}",
            "time to serialise",
            value,
            "ms",
            SERIALISED.get(way),
            times.rounds,
            beside,
        )


def agree_written(found: WeightUpdates, content: Mapping[str, Any]) -> None:
    """What is written holds every bit.

    Raises:
        Disagreement: It does not.
    """
    read = json.loads(serialize(content, JSON, "json"))["updates"]
    stored = load(serialize(content, SAFETENSORS, "json"))
    for i, (update, told) in enumerate(zip(found.updates, read, strict=True)):
        if update.factors is None:
            raise Disagreement("the factors are not there")
        for name in ("input", "output"):
            values = getattr(update.factors, name).numpy()
            written = np.asarray(told["factors"][name]["data"], values.dtype)
            exact = np.array_equal(stored[f"updates.{i}.factors.{name}"], values)
            if not (exact and np.array_equal(written, values)):
                raise Disagreement(f"the {name} factor of update {i} is written inexactly")
