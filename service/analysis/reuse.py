"""Reuse: how far an update carries to other queries.

An update is exact for the query that it was formed for. Applied to another one it is some error,
which is reported beside the error of no patch at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.analysis.factors import layer_update
from service.analysis.numbers import ratios
from service.analysis.pairs import Pair, Stream, gathered
from service.engine import Activations, HookPoint, Model, Question, Site, patched_mlp_pre
from service.theory import RankOne, discrepancy, update_on_base


@dataclass(frozen=True)
class Reuse:
    """One update on another query's last token, at mlp_pre.

    Args:
        query: Index into the probe queries.
        cosine: cos(ΔW of this entry, ΔW of the probe query); None where one is zero.
        relative_error: ‖patched − with context‖ / ‖with context‖.
        unpatched_relative_error: The same without a patch.
    """

    query: int
    cosine: float | None
    relative_error: float | None
    unpatched_relative_error: float | None


def reuses(
    model: Model, pair: Pair, layers: Sequence[int], stream: Stream, probes: Sequence[Pair]
) -> Question[list[tuple[Reuse, ...] | None]]:
    """Each layer's update at each asked position on every probe; None where there are none."""
    if not probes:
        return [None] * (len(layers) * len(pair.positions))
    points: tuple[HookPoint, ...] = ("mlp_in", "resid_mid")
    base = pair.baseline_runs(layers, points, stream)
    runs = [pair.with_context.run(pair.reads(layers, points)), *base]
    for probe in probes:
        reads = probe.reads(layers, ("mlp_in", "mlp_pre"))
        runs += [probe.with_context.run(reads), probe.baseline.run(reads)]
    context, *rest = yield runs
    baseline, probed = gathered(rest[: len(base)]), rest[len(base) :]
    found: list[tuple[Reuse, ...] | None] = []
    for layer in layers:
        weight = layer_update(layer, context, baseline, model.blocks[layer].w_in.weight).weight
        by_probe = [
            _reuse(model, layer, weight, q, with_context, without)
            for q, (with_context, without) in enumerate(zip(probed[::2], probed[1::2], strict=True))
        ]
        found += [tuple(of_probe) for of_probe in zip(*by_probe, strict=True)]
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
    cosines = ratios(weight.cosine(own))
    return [
        Reuse(query, cosine, error, unpatched)
        for cosine, error in zip(cosines, ratios(errors), strict=True)
    ]
