"""W1 to W4: the engine against the seed script, the peers, transformers and the machine's limit."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from benchmarks import engine
from benchmarks.agreement import Disagreement, Update, agree, agree_updates
from benchmarks.bench import Bench, token_ids
from benchmarks.hook import hook_update
from benchmarks.peers.host import IDIOMS, Peer, running_peers
from benchmarks.results import Row, compare
from benchmarks.seed import seed_update
from benchmarks.timing import FEW, Sides
from tests.real.weights import Unavailable, converted


def one_layer(bench: Bench) -> Iterator[Row]:
    """W1: one layer's update for a query of one token."""
    with running_peers(bench) as peers:
        for tokens in (22, 128, 512, 1024):
            if tokens <= bench.model.n_positions:
                yield from _one_layer(bench, peers, tokens)


def _one_layer(bench: Bench, peers: Sequence[Peer], tokens: int) -> Iterator[Row]:
    """Time each peer in its best idiom, and in fewer rounds in the one that it documents."""
    model, layer = bench.model, min(5, bench.model.n_layers - 1)
    *context, query = token_ids(tokens)
    seed = partial(seed_update, bench.transformers_model, layer, context, query)
    ours = partial(engine.update, model, layer, context, [query])
    hook = partial(hook_update, bench.transformers_model, layer, context, query)
    agree_updates("matched", ours(), seed(start=len(context)))
    agree_updates("hook", ours("alone"), hook())
    agree_updates("alone", ours("alone"), seed())
    best, documented = (
        {
            f"{peer.name}, {idiom}": partial(peer.time, idiom, layer, context, query)
            for peer in peers
        }
        for idiom in IDIOMS
    )
    for peer in peers:
        for idiom in IDIOMS:
            agree_updates(peer.name, ours("alone"), peer.update(idiom, layer, context, query))
    products = partial(engine.needed_products, model, layer, tokens + 1, 2)
    others: Sides = {
        "seed script": seed,
        "hook, early stop": hook,
        "needed products": products(),
        "needed products, packed": products(packed=True),
        **best,
    }
    case = f"layer {layer}, one query, {tokens} tokens"
    for group, rounds, share in ((others, 7, 1.0), (documented, FEW, 0.5)):
        ratios = [(side, "engine") for side in group]
        sides: Sides = {"engine": ours, **group}
        if group:
            yield from compare(bench, "W1", case, tokens, sides, ratios, rounds, share)


def one_layer_of_smollm2(bench: Bench) -> Iterator[Row]:
    """W1 on the pretrained SmolLM2-135M, if its weights are in the cache; without peers."""
    try:
        folder = converted("smollm2")
    except Unavailable as reason:
        print(f"benchmarks: {reason}", file=sys.stderr)
        return
    for row in one_layer(replace(bench, chosen=str(folder), peers=False)):
        yield replace(row, workload="SmolLM2")


def all_layers(bench: Bench) -> Iterator[Row]:
    """W2: every layer's norm and block check, two questions in one pack."""
    model, tokens = bench.model, min(128, bench.model.n_positions)
    *context, query = token_ids(tokens)
    plain = partial(_plain_forward, bench, [*context, query])
    agree("logits", engine.logits(model, [*context, query]), plain())
    seeds = _seed_updates(bench, context, query)
    for norm, other in zip(engine.norms(model, context, query, "alone"), seeds, strict=True):
        agree("‖ΔW‖", torch.tensor(norm), other.norm, other.cancellation)
    checks = partial(engine.norms_and_checks, model, context, query)
    sides: Sides = {
        "engine, materialized": partial(checks, "materialized"),
        "engine, factored": partial(checks, "factored"),
        "norms": partial(engine.norms, model, context, query),
        "plain forward": plain,
        "seed script": partial(_seed_updates, bench, context, query),
    }
    ratios = [(side, "plain forward") for side in list(sides)[:3]]
    ratios.append(("seed script", "engine, materialized"))
    case = f"all {model.n_layers} layers, {tokens} tokens"
    yield from compare(bench, "W2", case, tokens, sides, ratios)


def cached_context(bench: Bench, tokens: int) -> Iterator[Row]:
    """W3: the last layer's update for new queries behind a context, cached or not."""
    if tokens >= bench.model.n_positions:
        return
    model, last = bench.model, bench.model.n_layers - 1
    cache, queries = engine.new_cache(model), token_ids(64, tokens)
    update = partial(engine.update, model, last, token_ids(tokens))
    for query in queries[:2]:
        known = update([query], cache=cache)
        agree_updates("update behind a cached context", known, update([query]))
    if cache.hits < tokens:
        raise Disagreement(f"only {cache.hits} of {tokens} rows were cached")
    turn = cycle(queries)
    sides: Sides = {
        "cold": lambda: update([next(turn)]),
        "known": lambda: update([next(turn)], cache=cache),
        "needed products": engine.needed_products(model, last, 2, 2),
        "needed products, packed": engine.needed_products(model, last, 2, 2, packed=True),
    }
    case = f"layer {last}, {tokens} tokens + a query of one"
    ratios = [("known", side) for side in list(sides)[2:]] + [("cold", "known")]
    yield from compare(bench, "W3", case, tokens, sides, ratios)


def token_trajectory(bench: Bench) -> Iterator[Row]:
    """W4: a trajectory of every layer in one pack, against one forward for each of its runs."""
    model, tokens = bench.model, min(128, bench.model.n_positions - 1)
    *context, query = token_ids(tokens + 1)
    run = partial(engine.trajectory_activations, model, context, query)
    for i, (one, other) in enumerate(zip(run(packed=True), run(packed=False), strict=True)):
        for site, vector in other.items():
            agree(f"mlp_in of layer {site.layer} in run {i}", one[site], vector)
    sides: Sides = {
        "one question": partial(run, packed=True),
        "separate runs": partial(run, packed=False),
        "plain forward": partial(_plain_forward, bench, [*context, query]),
    }
    ratios = [("separate runs", "one question"), ("one question", "plain forward")]
    case = f"all {model.n_layers} layers, {tokens} tokens, {tokens + 1} runs"
    yield from compare(bench, "W4", case, tokens, sides, ratios, FEW)


def _seed_updates(bench: Bench, context: Sequence[int], query: int) -> list[Update]:
    """The seed script once for each layer."""
    layers = range(bench.model.n_layers)
    return [seed_update(bench.transformers_model, layer, context, query) for layer in layers]


def _plain_forward(bench: Bench, ids: Sequence[int]) -> Tensor:
    """Logits of one forward of transformers, (rows, vocab)."""
    model: Any = bench.transformers_model
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([ids], device=bench.device)).logits[0]
    return logits
