"""Reuse: the error of an update on other queries.

An update is exact for the query that it was formed for. For other queries its error is reported
beside the error without any patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from schemas.common import UNSET, Unset
from schemas.weight_updates import Reuse
from service.analysis.factors import layer_update, ratios
from service.analysis.pairs import Pair
from service.engine import Activations, Model, Question, Site, patched_product
from service.theory import RankOne, below_noise, discrepancy, update_on_base


def reuses(
    model: Model, pair: Pair, layers: Sequence[int], probes: Sequence[Pair]
) -> Question[Sequence[Sequence[Reuse] | Unset]]:
    """Apply each layer's update at each requested position to every probe.

    Only in the free stream: an update of the sequential stream belongs to the stream that the
    patched layers below produce for its own query.
    """
    if not probes:
        return [UNSET] * (len(layers) * len(pair.positions))
    reads = pair.reads(layers, ("mlp_in", "resid_mid"))
    runs = [pair.with_context.run(reads), pair.baseline.run(reads)]
    for probe in probes:
        reads = probe.reads(layers, ("mlp_in", *model.blocks[0].pre_points))
        runs += [probe.with_context.run(reads), probe.baseline.run(reads)]
    context, baseline, *probed = yield runs
    found: list[Sequence[Reuse] | Unset] = []
    for layer in layers:
        weight = layer_update(layer, context, baseline, model.blocks[layer]).weight
        by_probe = [
            _reuse(model, layer, weight, q, with_context, without)
            for q, (with_context, without) in enumerate(zip(probed[::2], probed[1::2], strict=True))
        ]
        found += [list(of_probe) for of_probe in zip(*by_probe, strict=True)]
        yield ()
    return found


def _reuse(
    model: Model,
    layer: int,
    weight: RankOne,
    query: int,
    context: Activations,
    baseline: Activations,
) -> list[Reuse]:
    """Apply the updates of all positions to one probe."""
    block = model.blocks[layer]
    n = Site(layer, "mlp_in")
    expected, unpatched = (
        torch.cat([run[Site(layer, point)] for point in block.pre_points], -1)
        for run in (context, baseline)
    )
    own = update_on_base(baseline[n], baseline[n], context[n], block.w_in)
    count = len(weight.input)
    weight_here = weight.to(baseline[n].dtype)
    patched = patched_product(block.w_in, baseline[n].expand(count, -1), weight_here, "factored")
    errors = discrepancy(expected, patched).relative_error
    bare = ratios(discrepancy(expected, unpatched).relative_error)[0]
    noise = bool(below_noise(baseline[n], context[n], baseline[n].dtype))
    cosines = [None] * count if noise else ratios(weight.cosine(own))
    return [
        Reuse(query, cosine, noise, error, bare)
        for cosine, error in zip(cosines, ratios(errors), strict=True)
    ]
