"""W1: the update of one layer for a query of one token: seed script, peers and the limit beside it.

What a peer's documentation shows is measured beside its best idiom, in a comparison of few rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from benchmarks.agreement import agree_captured, agree_difference
from benchmarks.bench import Bench
from benchmarks.peers.process import Beside, beside
from benchmarks.products import Prepared, one_layer
from benchmarks.seed import SeedUpdate, seed_update
from benchmarks.table import Bar, Row
from benchmarks.timing import in_turn
from service.analysis.pairs import Baseline, resolve_pair
from service.analysis.weight_updates import Update, weight_updates
from service.engine import Model, drive

TOKENS = (22, 128, 512, 1024)
LAYER = 5
AGAINST_SEED = Bar(">=", 3.5)
AGAINST_PEER = {22: Bar(">=", 1.25), 128: Bar(">=", 1.05), 512: Bar(">=", 1.1)}
SHARE = {128: Bar(">=", 0.85), 512: Bar(">=", 0.80), 1024: Bar(">=", 0.80)}
FEW = 3


def rows(bench: Bench) -> Iterator[Row]:
    """For each length of the prompt a row for the seed script, the limit and each peer's idioms."""
    layer = min(LAYER, bench.model.n_layers - 1)
    with beside(bench) as peers:
        for tokens in (count for count in TOKENS if count <= bench.model.n_positions):
            yield from _of_length(bench, peers, layer, tokens)


def _of_length(bench: Bench, peers: Sequence[Beside], layer: int, tokens: int) -> Iterator[Row]:
    model = bench.model
    *context, query = bench.ids(tokens)
    needed = [*one_layer(model, layer, tokens + 1, 2)]
    plain = Prepared(needed, model.token_embedding, blocks=False)
    blocks = Prepared(needed, model.token_embedding, blocks=True)
    agree(bench, layer, context, query)
    agree_with_peers(model, peers, layer, context, query)
    engine = partial(update, model, layer, context, query, "matched")
    sides: dict[str, Callable[[], object]] = {
        "engine": engine,
        "seed script": partial(seed_update, bench.peer, layer, [*context, query], [query]),
        "needed products": plain.multiply,
        "needed products, in blocks": blocks.multiply,
    }
    shown: dict[str, Callable[[], object]] = {"engine": engine}
    for running in peers:
        best, *others = running.peer.idioms
        name = running.peer.name
        sides[f"{name}, {best}"] = partial(running.update, best, layer, context, query)
        for idiom in others:
            shown[f"{name}, {idiom}"] = partial(running.update, idiom, layer, context, query)
    times = in_turn(sides, model.device, bench.seconds)
    case = f"layer {layer}, one query, {tokens} tokens"
    share = SHARE.get(tokens)
    yield Row.of_times("W1", case, times, "seed script", "engine", "times", AGAINST_SEED)
    yield Row.of_times("W1", case, times, "needed products", "engine", "share", share)
    in_blocks = "needed products, in blocks"
    yield Row.of_times("W1", case, times, in_blocks, "engine", "share", None)
    bar = AGAINST_PEER[min(tokens, max(AGAINST_PEER))]
    for side in list(sides)[4:]:
        yield Row.of_times("W1", case, times, side, "engine", "times", bar)
    if len(shown) > 1:
        again = in_turn(shown, model.device, bench.seconds / 2, FEW, warm=True)
        for side in list(shown)[1:]:
            yield Row.of_times("W1", case, again, side, "engine", "times", None)


def update(
    model: Model, layer: int, context: Sequence[int], query: int, baseline: Baseline
) -> Update:
    """The engine's answer, factors and all, from ids to numbers."""
    pair = resolve_pair(model, context, [query], baseline, "last")
    return drive(model, weight_updates(model, pair, [layer], {"factors"})).updates[0]


def agree(bench: Bench, layer: int, context: Sequence[int], query: int) -> None:
    """The engine's update is the seed's, for the seed's baseline and for the timed one.

    Raises:
        Disagreement: It is not.
    """
    starts: dict[Baseline, int | None] = {"alone": None, "matched": len(context)}
    for baseline, start in starts.items():
        mine = update(bench.model, layer, context, query, baseline)
        theirs = seed_update(bench.peer, layer, [*context, query], [query], start)
        compare(f"layer {layer}, {baseline}", mine, theirs)


def agree_with_peers(
    model: Model, peers: Sequence[Beside], layer: int, context: Sequence[int], query: int
) -> None:
    """Every idiom of every peer gives the engine's update; their baseline is `alone`.

    Raises:
        Disagreement: One does not.
    """
    mine = update(model, layer, context, query, "alone")
    for running in peers:
        for idiom in running.peer.idioms:
            theirs = running.given(idiom, layer, context, query)
            compare(f"layer {layer}, {running.peer.name}, {idiom}", mine, theirs)


def compare(what: str, mine: Update, theirs: SeedUpdate) -> None:
    """Factors where they were asked for, and the norm.

    Raises:
        Disagreement: One of them differs.
    """
    a = theirs.a.double()
    vectors = theirs.a_context, theirs.a
    length = torch.linalg.vector_norm(theirs.output.double()) / a.norm()
    agree_difference(f"‖ΔW‖ of {what}", torch.tensor(mine.norm), length, *vectors)
    if mine.factors is not None:
        factors = mine.factors
        agree_captured(f"the input factor of {what}", factors.input, a / a.square().sum())
        agree_difference(f"the output factor of {what}", factors.output, theirs.output, *vectors)
