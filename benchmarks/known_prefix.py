"""W3: the last layer's update for a new query of one token, its context known or cold.

Cold is the engine without known prefixes, which has nothing to keep either; what the first question
about a context takes, keeping included, stands beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

import torch

from benchmarks.agreement import Disagreement, agree_cancelling, agree_captured
from benchmarks.asking import together
from benchmarks.bench import Bench
from benchmarks.table import Bar, Row
from benchmarks.timing import in_turn
from service.analysis.pairs import resolve_pair
from service.analysis.weight_updates import Norms, Update, weight_updates
from service.engine import Model
from service.engine.prefixes import Prefixes

BARS = {128: Bar(">=", 12.0), 512: Bar(">=", 40.0), 1000: Bar(">=", 70.0)}
BUDGET = 256 * 1024 * 1024
QUERIES = 64


def rows(bench: Bench) -> Iterator[Row]:
    """One row for each length of the context."""
    model = bench.model
    for tokens in (count for count in BARS if count < model.n_positions):
        yield _of_length(bench, tokens)


def _of_length(bench: Bench, tokens: int) -> Row:
    model, context, queries = bench.model, bench.ids(tokens), bench.ids(QUERIES, seed=tokens)
    prefixes = _prefixes(model)
    agree(model, context, queries[:2], prefixes)
    asked = cycle(queries)
    times = in_turn(
        {
            "cold": lambda: last(model, context, next(asked)),
            "known": lambda: last(model, context, next(asked), prefixes),
            "first": lambda: last(model, context, next(asked), _prefixes(model)),
        },
        model.device,
        bench.seconds,
    )
    case = f"layer {model.n_layers - 1}, {tokens} tokens + a query of one"
    return Row.of_times("W3", case, times, "cold", "known", "times", BARS[tokens])


def last(
    model: Model, context: Sequence[int], query: int, prefixes: Prefixes | None = None
) -> Update:
    """The last layer's update, through the service's own scheduler."""
    pair = resolve_pair(model, context, [query], "matched", "last")
    question = weight_updates(model, pair, [model.n_layers - 1], {"factors"})
    (found,) = together(model, question, prefixes=prefixes)
    update: Update = found.updates[0]
    return update


def agree(model: Model, context: Sequence[int], queries: Sequence[int], prefixes: Prefixes) -> None:
    """Known and cold give one update, and what is timed as known is: its context fills `prefixes`.

    Raises:
        Disagreement: They do not, or it is not.
    """
    for query in queries:
        known, cold = last(model, context, query, prefixes), last(model, context, query)
        compare(f"the last layer behind {len(context)} tokens", known, cold)
    if prefixes.hits < (len(queries) - 1) * len(context):
        raise Disagreement(f"of {len(context)} rows only {prefixes.hits} were known")


def compare(what: str, one: Update, other: Update) -> None:
    """The factors of one update, computed in two ways.

    Raises:
        Disagreement: One of them differs.
    """
    if one.factors is None or other.factors is None:
        raise Disagreement(f"{what}: the factors are not there")
    cancels = cancellation(other.mlp_in)
    agree_captured(f"the input factor of {what}", one.factors.input, other.factors.input)
    agree_cancelling(
        f"the output factor of {what}", one.factors.output, other.factors.output, cancels
    )
    norms = torch.tensor(one.norm), torch.tensor(other.norm)
    agree_cancelling(f"‖ΔW‖ of {what}", *norms, cancels)


def cancellation(norms: Norms) -> float:
    """How much cancels in the difference of two vectors."""
    return (norms.norm_with_context + norms.norm_baseline) / norms.norm_difference


def _prefixes(model: Model) -> Prefixes:
    return Prefixes(BUDGET, model.dtype)
