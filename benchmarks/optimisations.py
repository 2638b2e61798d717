"""What each optimisation brings, one at a time: the engine with one thing undone, over itself.

Known prefixes are W3, packing over HTTP is W5, shared prefixes W4, factors for matrices W2. Here is
what has its switch in a question or in a name: all are undone in this process alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from transformers.activations import NewGELUActivation

from benchmarks.all_layers import answers, one_by_one
from benchmarks.asking import apart, reading_more, together
from benchmarks.bench import Bench
from benchmarks.known_prefix import compare
from benchmarks.one_layer import LAYER
from benchmarks.table import Row
from benchmarks.timing import in_turn
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.weight_updates import WeightUpdates, weight_updates
from service.engine import Activations, Model, Question, Site, walk

SECONDS = 6.0
ALL_AT_ONCE = 1 << 30


def rows(bench: Bench) -> Iterator[Row]:
    """One row for each optimisation and length."""
    model = bench.model
    layer = min(LAYER, model.n_layers - 1)
    for tokens in (22, 128):
        yield from _of_length(bench, layer, tokens)
    for tokens in (512, 1024):
        if tokens <= model.n_positions:
            ask = partial(_asked, model, _pair(bench, tokens), layer)
            yield _row(bench, f"layer {layer}", tokens, "attention in slices", ask, _unsliced(ask))
    *context, query = bench.ids(128)
    ask_both = partial(answers, model, context, query, "matched", "materialized")
    in_two = partial(one_by_one, model, context, query, "matched", "materialized")
    yield _row(bench, "all layers", 128, "one forward for two questions", ask_both, in_two)


def _of_length(bench: Bench, layer: int, tokens: int) -> Iterator[Row]:
    model, pair = bench.model, _pair(bench, tokens)
    ask, last = partial(_asked, model, pair, layer), model.n_layers - 1
    undone: Mapping[str, Callable[[], Any]] = {
        "no block behind the layer": lambda: _more(model, pair, layer, last),
        "no unembedding, no block behind": lambda: _more(
            model, pair, layer, last, lambda read: model.logits(read[Site(last, "resid_post")])
        ),
        "only read rows in the last block": lambda: _more(model, pair, layer, layer),
        "both runs in one pack": lambda: apart(model, _question(model, pair, layer)),
        "fused gelu": partial(_asked, _unfused(model), pair, layer),
    }
    for name, without in undone.items():
        yield _row(bench, f"layer {layer}", tokens, name, ask, without)


def _row(
    bench: Bench,
    case: str,
    tokens: int,
    name: str,
    ask: Callable[[], Any],
    without: Callable[[], Any],
) -> Row:
    """The row of one optimisation; both sides must give one update."""
    one, other = ask(), without()
    if isinstance(one, WeightUpdates):
        compare(name, one.updates[0], other.updates[0])
    times = in_turn({"with": ask, "without": without}, bench.device, min(bench.seconds, SECONDS))
    row = Row.of_times("one", f"{case}, {tokens} tokens", times, "without", "with", "times", None)
    return replace(row, figure=name)


def _pair(bench: Bench, tokens: int) -> Pair:
    *context, query = bench.ids(tokens)
    return resolve_pair(bench.model, context, [query], "matched", "last")


def _question(model: Model, pair: Pair, layer: int) -> Question[WeightUpdates]:
    return weight_updates(model, pair, [layer], {"factors"})


def _asked(model: Model, pair: Pair, layer: int) -> WeightUpdates:
    (found,) = together(model, _question(model, pair, layer))
    answer: WeightUpdates = found
    return answer


def _more(
    model: Model,
    pair: Pair,
    layer: int,
    whole: int,
    seen: Callable[[Activations], object] = lambda _read: None,
) -> WeightUpdates:
    """The update of a layer, the stream behind another one read of every row."""
    site = Site(whole, "resid_post")
    question = _question(model, pair, layer)
    wider = reading_more(question, lambda run: {site: range(len(run.tokens))}, seen)
    (found,) = together(model, wider)
    answer: WeightUpdates = found
    return answer


def _unfused(model: Model) -> Model:
    """The model with the activation function as transformers writes it, in eight calls."""
    written: nn.Module = NewGELUActivation()
    return replace(model, blocks=tuple(replace(block, act=written) for block in model.blocks))


def _unsliced(ask: Callable[[], WeightUpdates]) -> Callable[[], WeightUpdates]:
    """The same with one attention call for all rows."""

    def run() -> WeightUpdates:
        kept, walk.SLICE = walk.SLICE, ALL_AT_ONCE
        try:
            return ask()
        finally:
            walk.SLICE = kept

    return run
