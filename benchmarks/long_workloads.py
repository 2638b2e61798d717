"""W12: questions of many runs over HTTP, against the engine that computes them in one pack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from benchmarks import engine
from benchmarks.agreement import agree
from benchmarks.bench import Bench, token_ids
from benchmarks.results import Row, compare
from benchmarks.server import Answer, Request, Server, running_server, timed
from benchmarks.timing import FEW, Sides

TOKENS = 1000
SETTINGS: Mapping[str, Mapping[str, int]] = {
    "default settings": {},
    "no prefix cache": {"prefix_cache_bytes": 0},
    **{f"row budget {rows}": {"row_budget": rows} for rows in (128, 512, 4096)},
}
CANCELLATION = 20.0
"""Factor on the allowed difference of norms, which are formed from differences."""
Draw = Callable[[int], Request]
"""A request with tokens of its own, by a seed."""


def trajectory(bench: Bench, name: str) -> Iterator[Row]:
    """W12: a trajectory of 1000 tokens with some settings of the service."""
    draw = partial(_trajectory, bench, TOKENS)
    yield from _against_one_pack(bench, draw, f"trajectory, {TOKENS} tokens", TOKENS, name)


def growth(bench: Bench) -> Iterator[Row]:
    """W12: a trajectory of 1000 tokens over HTTP, against one of 500."""
    if bench.model.n_positions <= TOKENS:
        return
    seeds = count()

    def ask(server: Server, tokens: int) -> Iterator[Answer]:
        yield server.post(_trajectory(bench, tokens, next(seeds)))

    whole, half = (f"{tokens} tokens" for tokens in (TOKENS, TOKENS // 2))
    with running_server(**bench.settings) as server:
        sides: Sides = {
            whole: timed(server, partial(ask, server, TOKENS)),
            half: timed(server, partial(ask, server, TOKENS // 2)),
        }
        case = "trajectory, default settings"
        yield from compare(bench, "W12", case, TOKENS, sides, [(whole, half)], FEW, 0.5)


def many_runs(bench: Bench, name: str) -> Iterator[Row]:
    """W12: another question of many runs, with default settings."""
    tokens, make = QUESTIONS[name]
    draw = partial(make, bench, tokens)
    yield from _against_one_pack(bench, draw, f"{name}, {tokens} tokens", tokens)


def _against_one_pack(
    bench: Bench, draw: Draw, case: str, tokens: int, name: str = "default settings"
) -> Iterator[Row]:
    if bench.model.n_positions <= tokens:
        return
    # Each request is new, so that none is answered from the prefix cache.
    seeds = count()
    with running_server(**bench.settings, **SETTINGS[name]) as server:
        request = draw(next(seeds))
        one, other = map(_norms, (server.post(request).json, engine.answer(bench.model, request)))
        agree(f"‖ΔW‖ of {case}", one, other, CANCELLATION)
        side = f"HTTP, {name}"
        sides: Sides = {
            side: timed(server, lambda: [server.post(draw(next(seeds)))]),
            "one pack": lambda: engine.answer(bench.model, draw(next(seeds))),
        }
        yield from compare(bench, "W12", case, tokens, sides, [(side, "one pack")], FEW, 0.5)


def _body(bench: Bench, tokens: int, query: int, seed: int) -> dict[str, Any]:
    ids, layer = token_ids(tokens + query, 3000 + seed), min(5, bench.model.n_layers - 1)
    return {"context": ids[:tokens], "query": ids[tokens:], "layers": [layer]}


def _trajectory(bench: Bench, tokens: int, seed: int, query: int = 1) -> Request:
    return Request("/v1/trajectories", _body(bench, tokens, query, seed))


def _attribution(bench: Bench, tokens: int, seed: int) -> Request:
    """An attribution to 32 spans of equal length."""
    length = tokens // 32
    spans = [[start, start + length] for start in range(0, tokens, length)]
    return Request("/v1/attributions", {**_body(bench, tokens, 1, seed), "spans": spans})


def _sequential(bench: Bench, tokens: int, seed: int) -> Request:
    """Updates of the sequential stream at 64 positions; each has a run of its own."""
    options = {"stream": "sequential", "positions": "all", "include": []}
    return Request("/v1/weight-updates", {**_body(bench, tokens, 64, seed), **options})


QUESTIONS: Mapping[str, tuple[int, Callable[[Bench, int, int], Request]]] = {
    "trajectory, query of 32": (120, partial(_trajectory, query=32)),
    "attribution, 32 spans": (192, _attribution),
    "sequential, 64 positions": (128, _sequential),
}
"""Tokens of the context, and the request."""


def _norms(answer: Any) -> Tensor:
    """Every norm of ΔW in an answer, in order."""

    def found(part: Any) -> Iterator[float]:
        if isinstance(part, Mapping):
            for name, value in part.items():
                yield from [value] if name == "norm" else found(value)
        elif isinstance(part, list | tuple):
            for value in part:
                yield from found(value)

    return torch.tensor(list(found(answer)), dtype=torch.float64)
