"""Token adapters: one context and one query as changed weights of every layer.

Each layer's update is formed on the stream that the patched layers below it produce, from the rows
of the run with context at the same positions (Goldwaser et al., arXiv 2511.17864, Algorithm 1). It
is one update for all positions at once, and acts on every row, as weights do. So the logits at the
positions are those of the run with context, and the answer after them as long as no other token is
read.

For one position it is the rank-1 update of the first weights with Δh; for m positions the rank-m
patch of both weights (`theory.joint_update`). The MLP of a parallel block reads the stream before
attention, which equals that with context in the sequential stream. So ΔW of its first weights is
zero by theorem, and is left out.

The adapter is used as it is stored, so the stream of the next layer is formed from the rounded
factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from schemas.activations import HookPoint
from schemas.adapters import AdapterLayer, TokenAdapterRequest
from schemas.pairs import Form
from service.analysis.adapters.made import MadeAdapter, token_form, token_pair
from service.analysis.factors import POINTS, layer_update
from service.analysis.next_tokens import last_site, unembedded
from service.analysis.pairs import Pair
from service.analysis.pieces import conditions_of, exists, most_entries, slices, update_cost
from service.engine import (
    Activations,
    AnswerSize,
    Begin,
    Block,
    Condition,
    Fixed,
    Model,
    Plan,
    Question,
    Run,
    Site,
    copied,
    fetch,
    numbers,
    patched_block,
    plan,
)
from service.theory import (
    LowRank,
    StaticUpdate,
    discrepancy,
    is_finite,
    joint_update,
    least_norm,
    norm,
    static_updates,
)

DTYPE = torch.float32
"""The dtype of adapters, and of the runs that they are formed from."""
READ: tuple[HookPoint, ...] = POINTS["bias"]
"""The hook points that are read of the patched stream."""


def plan_token_adapter(model: Model, body: TokenAdapterRequest) -> Plan[MadeAdapter]:
    """Plan a token adapter. Raises `Refused` if an input does not fit."""
    pair = token_pair(model, body)
    form = token_form(model, body, pair)
    size = AnswerSize(model.n_layers, pair.echoed_tokens)
    return plan(model, token_adapter(model, pair, form), size)


def token_adapter(model: Model, pair: Pair, form: Form) -> Question[MadeAdapter]:
    """Form the adapter of a pair that is exact at all its positions.

    Args:
        model: The resident model.
        pair: The run with context and its baseline.
        form: The carrier of Δh. Several positions need `weights`.

    Raises:
        DependentRows: No update of a layer is exact at all positions.
        NonFinite: An update does not exist.
    """
    every = range(model.n_layers)
    context, base = yield [
        pair.with_context.run(pair.reads(every, POINTS[form]), DTYPE),
        _all_rows(pair, 0),
    ]
    updates: dict[int, StaticUpdate] = {}
    conditions: list[Condition] = [*context.conditions]
    worst = 1.0
    for layer in every:
        block = model.blocks[layer].to(DTYPE)
        conditions += base.conditions
        if len(pair.positions) == 1:
            update, formed = _of_one(layer, pair, context, base, block, form)
            conditions.append(formed)
        else:
            # The solver decides on the host. It would not name the layer of a NaN.
            fetch((), conditions)
            update, condition = _of_several(layer, pair, context, base, block)
            worst = max(worst, condition)
        updates[layer] = update.to(DTYPE)
        if layer + 1 < model.n_layers:
            stream = yield from _passed(model, layer, block, base, updates[layer])
            (base,) = yield [replace(_all_rows(pair, layer + 1), begin=Begin(layer + 1, stream))]
    updates, layers = _read(model, updates, conditions)
    return MadeAdapter(
        kind="token",
        exact=True,
        form=form,
        baseline=pair.kind,
        position_shift=pair.relation(model)[-1],
        updates=updates,
        layers=layers,
        fields={"positions": pair.positions, "condition": worst},
        check=lambda read: verified(model, pair, read),
    )


def verified(model: Model, pair: Pair, updates: Mapping[int, StaticUpdate]) -> Question[float]:
    """The largest relative error of the logits at a pair's positions under given updates.

    Args:
        model: The resident model.
        pair: The run with context, which gives the true logits, and the baseline, which is patched.
        updates: The update of each layer, on the model's device.
    """
    site = last_site(model)
    reads = {site: pair.positions}
    patched = replace(pair.baseline.run(reads, DTYPE), patch=Fixed(updates))
    received = yield [pair.with_context.run(reads, DTYPE), patched]
    logits, finite = unembedded(model, torch.stack([run[site] for run in received]))
    worst = discrepancy(*logits.unbind()).relative_error.max()
    (found,) = fetch([worst], [*conditions_of(received), finite])
    error: float = numbers(found)
    return error


def _all_rows(pair: Pair, layer: int) -> Run:
    """The baseline run that reads what an update is formed from, and what it acts on."""
    ids, positions = pair.baseline.ids, pair.baseline.positions
    return Run(ids, positions, {Site(layer, point): range(len(ids)) for point in READ}, DTYPE)


def _of_one(
    layer: int, pair: Pair, context: Activations, base: Activations, block: Block, form: Form
) -> tuple[StaticUpdate, Condition]:
    """The update of a layer that is exact at one position, and the condition that it exists."""
    update = layer_update(layer, context, _at_positions(pair, layer, base), block, form)
    (static,) = static_updates(update)
    return replace(static, w_in=None) if block.parallel else static, exists(is_finite(update))


def _of_several(
    layer: int, pair: Pair, context: Activations, base: Activations, block: Block
) -> tuple[StaticUpdate, float]:
    """The update of a layer that is exact at several positions, and its condition number."""
    rows = _at_positions(pair, layer, base)
    n, h, act = (Site(layer, point) for point in POINTS["weights"])
    if block.parallel:
        w_out, condition = least_norm(context[act], context[h].double() - rows[h].double())
        return StaticUpdate(w_out=w_out), condition
    joint = joint_update(rows[n], context[n], rows[h], context[h], context[act], block.w_in)
    return joint, max(joint.conditions)


def _at_positions(pair: Pair, layer: int, base: Activations) -> Activations:
    """The activations of the patched stream at the pair's positions."""
    first = len(pair.baseline.ids) - len(pair.query)
    sites = [Site(layer, point) for point in READ]
    device = base[sites[0]].device
    rows = copied(torch.tensor([first + position for position in pair.positions]), device)
    return Activations({site: base[site][rows] for site in sites}, base.conditions)


def _passed(
    model: Model, layer: int, block: Block, base: Activations, update: StaticUpdate
) -> Question[Tensor]:
    """resid_post of all rows with a layer's patched MLP, (rows, d_model)."""
    n, h = (base[Site(layer, point)] for point in READ)
    parts = []
    for rows in slices(len(h), most_entries(model, 2 * update_cost(model))):
        parts.append(patched_block(block, h[rows], n[rows], update, "factored")[1])
        yield ()
    return torch.cat(parts)


def _read(
    model: Model, updates: Mapping[int, StaticUpdate], conditions: Sequence[Condition]
) -> tuple[dict[int, StaticUpdate], list[AdapterLayer]]:
    """The updates on the host, and the figures of each layer."""
    sizes = [_size(block, one) for block, one in zip(model.blocks, updates.values(), strict=True)]
    tensors = chain.from_iterable(map(_tensors, updates.values()))
    first, *host = fetch([torch.stack(sizes), *tensors], conditions)
    left = iter(host)

    def matrix(one: LowRank | None) -> LowRank | None:
        return None if one is None else LowRank(next(left), next(left))

    def vector(one: Tensor | None) -> Tensor | None:
        return None if one is None else next(left)

    read = {
        layer: StaticUpdate(matrix(one.w_in), matrix(one.w_out), vector(one.bias), vector(one.gain))
        for layer, one in updates.items()
    }
    layers = [
        AdapterLayer(layer, size, max((part.rank for part in _weights(one)), default=0), None)
        for (layer, one), size in zip(read.items(), numbers(first), strict=True)
    ]
    return read, layers


def _weights(update: StaticUpdate) -> list[LowRank]:
    return [part for part in (update.w_in, update.w_out) if part is not None]


def _tensors(update: StaticUpdate) -> list[Tensor]:
    """The tensors of an update, in the order of its fields."""
    factors = [factor for part in _weights(update) for factor in (part.input, part.output)]
    return factors + [part for part in (update.bias, update.gain) if part is not None]


def _size(block: Block, update: StaticUpdate) -> Tensor:
    """Frobenius norm of a layer's update, that of the gain's change included, float64."""
    sizes = [part.norm for part in _weights(update)]
    if update.bias is not None:
        sizes.append(norm(update.bias))
    if update.gain is not None and block.post_mlp is not None:
        sizes.append(norm(update.gain.double() - block.post_mlp.gain.double()))
    return norm(torch.stack(sizes))
