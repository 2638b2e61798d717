"""Reuse: how far an update carries to other queries.

An update is exact for the query that it was formed for. Applied to another one it is some error,
which is reported beside the error of no patch at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.analysis.factors import layer_update
from service.analysis.numbers import ratios
from service.analysis.pairs import Pair
from service.engine import Activations, Model, Question, Site, patched_mlp_pre
from service.theory import RankOne, below_noise, discrepancy, update_on_base


@dataclass(frozen=True)
class Reuse:
    """One update on another query's last token, at mlp_pre.

    Args:
        query: Index into the probe queries.
        cosine: cos(ΔW of this entry, ΔW of the probe query); None where one is zero or the
            probe's is below noise.
        below_noise: Whether the probe query's own ΔW is within the dtype's rounding.
        relative_error: ‖patched − with context‖ / ‖with context‖.
        unpatched_relative_error: The same without a patch.
    """

    query: int
    cosine: float | None
    below_noise: bool
    relative_error: float | None
    unpatched_relative_error: float | None


def reuses(
    model: Model, pair: Pair, layers: Sequence[int], probes: Sequence[Pair]
) -> Question[list[tuple[Reuse, ...] | None]]:
    """Each layer's update at each asked position on every probe; None where there are none.

    In the free stream: an update of the sequential stream belongs to the stream that the patched
    layers below produce for its own query.
    """
    if not probes:
        return [None] * (len(layers) * len(pair.positions))
    reads = pair.reads(layers, ("mlp_in", "resid_mid"))
    runs = [pair.with_context.run(reads), pair.baseline.run(reads)]
    for probe in probes:
        reads = probe.reads(layers, ("mlp_in", "mlp_pre"))
        runs += [probe.with_context.run(reads), probe.baseline.run(reads)]
    context, baseline, *probed = yield runs
    found: list[tuple[Reuse, ...] | None] = []
    for layer in layers:
        weight = layer_update(layer, context, baseline, model.blocks[layer].w_in.weight).weight
        by_probe = [
            _reuse(model, layer, weight, q, with_context, without)
            for q, (with_context, without) in enumerate(zip(probed[::2], probed[1::2], strict=True))
        ]
        found += [tuple(of_probe) for of_probe in zip(*by_probe, strict=True)]
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
    """The updates of all positions on one probe."""
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
