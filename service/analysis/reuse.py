"""Reuse: the error of an update on other queries.

An update is exact for the query that it was formed for. For other queries its error is reported
beside the error without any patch.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.common import UNSET, Unset
from schemas.weight_updates import Reuse
from service.analysis.factors import layer_update, ratios
from service.analysis.pairs import Pair
from service.engine import Activations, Model, Question, Site, patched_mlp_pre
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
        reads = probe.reads(layers, ("mlp_in", "mlp_pre"))
        runs += [probe.with_context.run(reads), probe.baseline.run(reads)]
    context, baseline, *probed = yield runs
    found: list[Sequence[Reuse] | Unset] = []
    for layer in layers:
        weight = layer_update(layer, context, baseline, model.blocks[layer].w_in.weight).weight
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
    n, pre = Site(layer, "mlp_in"), Site(layer, "mlp_pre")
    own = update_on_base(baseline[n], baseline[n], context[n], block.w_in.weight)
    count = len(weight.input)
    patched = patched_mlp_pre(
        block, baseline[n].expand(count, -1), weight.to(baseline[n].dtype), "factored"
    )
    errors = discrepancy(context[pre], patched).relative_error
    unpatched = ratios(discrepancy(context[pre], baseline[pre]).relative_error)[0]
    noise = bool(below_noise(baseline[n], context[n], baseline[n].dtype))
    cosines = [None] * count if noise else ratios(weight.cosine(own))
    return [
        Reuse(query, cosine, noise, error, unpatched)
        for cosine, error in zip(cosines, ratios(errors), strict=True)
    ]
