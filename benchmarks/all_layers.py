"""W2: every layer's update norm and block check, against one plain forward and the seed script.

Norms and check are two questions; they are under way together, as two requests of one moment are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.agreement import Disagreement, agree_captured
from benchmarks.asking import together
from benchmarks.bench import Bench
from benchmarks.one_layer import compare
from benchmarks.seed import SeedUpdate, seed_update
from benchmarks.table import Bar, Row
from benchmarks.timing import in_turn
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.pairs import Baseline, Pair, resolve_pair
from service.analysis.verdicts import Check
from service.analysis.weight_updates import WeightUpdates, weight_updates
from service.engine import Apply, Model, Question, Run, Site, drive

TOKENS = 128
APPLIES: Sequence[Apply] = ("materialized", "factored")
AGAINST_FORWARD = Bar("<=", 1.35)
AGAINST_SEED = Bar(">=", 14.0)


def rows(bench: Bench) -> Iterator[Row]:
    """Two rows for each way to apply W + ΔW; a request that does not choose gets `materialized`."""
    model, peer = bench.model, bench.peer
    *context, query = bench.ids(min(TOKENS, model.n_positions))
    prompt = torch.tensor([[*context, query]], device=model.device)
    agree(bench, context, query)
    sides: dict[str, Callable[[], object]] = {
        f"engine, {apply}": partial(answers, model, context, query, "matched", apply)
        for apply in APPLIES
    }
    sides["plain forward"] = partial(plain, peer, prompt)
    sides["seed script"] = partial(looped, bench, context, query)
    times = in_turn(sides, model.device, bench.seconds)
    case = f"all {model.n_layers} layers, {len(context) + 1} tokens"
    for apply in APPLIES:
        engine = f"engine, {apply}"
        yield Row.of_times("W2", case, times, engine, "plain forward", "times", AGAINST_FORWARD)
        yield Row.of_times("W2", case, times, "seed script", engine, "times", AGAINST_SEED)


def answers(
    model: Model, context: Sequence[int], query: int, baseline: Baseline, apply: Apply
) -> tuple[WeightUpdates, tuple[Check, ...]]:
    """Norms and checks of all layers, through the service's own scheduler."""
    pair = resolve_pair(model, context, [query], baseline, "last")
    norms, checks = together(model, _norms(model, pair), _checks(model, pair, apply))
    return norms, checks


def one_by_one(
    model: Model, context: Sequence[int], query: int, baseline: Baseline, apply: Apply
) -> tuple[WeightUpdates, tuple[Check, ...]]:
    """The same, the second question behind the first."""
    pair = resolve_pair(model, context, [query], baseline, "last")
    (norms,) = together(model, _norms(model, pair))
    (checks,) = together(model, _checks(model, pair, apply))
    return norms, checks


def looped(bench: Bench, context: Sequence[int], query: int) -> list[SeedUpdate]:
    """The seed script, once for each layer."""
    layers = range(bench.model.n_layers)
    return [seed_update(bench.peer, layer, [*context, query], [query]) for layer in layers]


def plain(peer: Any, prompt: Tensor) -> Tensor:
    """One forward of transformers with its unembedding: logits, (rows, vocab)."""
    with torch.no_grad():
        logits: Tensor = peer(prompt).logits[0]
    return logits


def agree(bench: Bench, context: Sequence[int], query: int) -> None:
    """The engine's logits are the plain forward's, its norms the seed's, and every check holds.

    Raises:
        Disagreement: One is not, or does not.
    """
    model = bench.model
    prompt = [*context, query]
    expected = plain(bench.peer, torch.tensor([prompt], device=model.device))
    agree_captured("the logits", drive(model, _logits(model, prompt)), expected)
    theirs = looped(bench, context, query)
    for apply in APPLIES:
        norms, checks = answers(model, context, query, "alone", apply)
        for mine, other in zip(norms.updates, theirs, strict=True):
            compare(f"layer {mine.layer}, alone", mine, other)
        if failing := [check.layer for check in checks if not check.holds]:
            raise Disagreement(f"the block check of layers {failing} does not hold")


def _norms(model: Model, pair: Pair) -> Question[WeightUpdates]:
    return weight_updates(model, pair, range(model.n_layers), ())


def _checks(model: Model, pair: Pair, apply: Apply) -> Question[tuple[Check, ...]]:
    procedure = Procedure("block", torch.float32, apply=apply, controls=False)
    return block_checks(model, pair, range(model.n_layers), procedure)


def _logits(model: Model, ids: Sequence[int]) -> Question[Tensor]:
    site = Site(model.n_layers - 1, "resid_post")
    (read,) = yield [Run(ids, range(len(ids)), {site: range(len(ids))})]
    return model.logits(read[site])
