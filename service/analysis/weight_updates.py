"""Weight updates: what a context does to each layer, as norms and factors, never as a matrix."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from service.analysis.factors import Factors, factors, layer_update
from service.analysis.next_tokens import NextTokens, next_tokens
from service.analysis.numbers import ratio, ratios
from service.analysis.pairs import Pair, Stream, gathered
from service.analysis.reuse import Reuse, reuses
from service.analysis.split import Split, splits
from service.analysis.together import together
from service.engine import Activations, Model, Question, Site
from service.theory import Comparison, below_noise, compare

Include = Literal["factors", "bias", "next_tokens", "split"]


@dataclass(frozen=True)
class Norms:
    """One activation with the context and in the baseline run."""

    norm_with_context: float
    norm_baseline: float
    norm_difference: float
    cosine: float | None


@dataclass(frozen=True)
class Update:
    """The update of one layer for one query position.

    Args:
        layer: From 0 up.
        position: Index into the query.
        weight: The name of the updated weight in the checkpoint.
        shape: Of that weight, as stored.
        rank: 1; 0 where the context changes nothing.
        norm: ‖ΔW‖, Frobenius = spectral.
        relative_norm: ‖ΔW‖ / ‖W‖, Frobenius.
        spectral_share: ‖ΔW‖ / ‖W‖, spectral.
        mlp_in: The vector that W multiplies.
        resid_mid: The residual stream before ln_2.
        below_noise: Whether the difference is within the dtype's rounding.
        factors: ΔW, where asked for.
        bias: Δh, (d_model), where asked for.
        split: ΔW as content and position, where asked for.
        reuse: ΔW on other queries, where any are given.
    """

    layer: int
    position: int
    weight: str
    shape: tuple[int, int]
    rank: int
    norm: float
    relative_norm: float | None
    spectral_share: float | None
    mlp_in: Norms
    resid_mid: Norms
    below_noise: bool
    factors: Factors | None = None
    bias: Tensor | None = None
    split: Split | None = None
    reuse: tuple[Reuse, ...] | None = None


@dataclass(frozen=True)
class WeightUpdates:
    """Layer by layer, and in a layer position by position."""

    updates: tuple[Update, ...]
    next_tokens: tuple[NextTokens, ...] | None = None


def weight_updates(
    model: Model,
    pair: Pair,
    layers: Sequence[int],
    include: Collection[Include],
    stream: Stream = "free",
    probes: Sequence[Pair] = (),
) -> Question[WeightUpdates]:
    """The update of each layer at each asked position.

    Args:
        model: The resident model.
        pair: The run with context and its baseline.
        layers: From 0 up.
        include: What to give beside the norms; `split` where the baseline is `alone` and the
            stream is free.
        stream: Whether a layer's baseline is read from the ordinary stream, or from the one that
            the patched layers below it produce.
        probes: Other queries behind the same context and baseline, to reuse each update on; in
            the free stream.
    """
    updates, likely, parts, reused = yield from together(
        _updates(model, pair, layers, include, stream),
        next_tokens(model, pair, "next_tokens" in include),
        splits(model, pair, layers, "split" in include),
        reuses(model, pair, layers, probes),
    )
    finished = (
        replace(update, split=part, reuse=again)
        for update, part, again in zip(updates, parts, reused, strict=True)
    )
    return WeightUpdates(tuple(finished), likely)


def _updates(
    model: Model,
    pair: Pair,
    layers: Sequence[int],
    include: Collection[Include],
    stream: Stream,
) -> Question[list[Update]]:
    reads = pair.reads(layers, ("mlp_in", "resid_mid"))
    base = pair.baseline_runs(layers, ("mlp_in", "resid_mid"), stream)
    context, *rest = yield [pair.with_context.run(reads), *base]
    baseline = gathered(rest)
    updates: list[Update] = []
    for layer in layers:
        updates += _of_layer(model, pair.positions, layer, context, baseline, include)
        yield ()
    return updates


def _of_layer(
    model: Model,
    positions: Sequence[int],
    layer: int,
    context: Activations,
    baseline: Activations,
    include: Collection[Include],
) -> list[Update]:
    w_in = model.blocks[layer].w_in.weight
    found = layer_update(layer, context, baseline, w_in)
    n, h = Site(layer, "mlp_in"), Site(layer, "resid_mid")
    mlp_in = _norms(compare(baseline[n], context[n]))
    resid_mid = _norms(compare(baseline[h], context[h]))
    noise = below_noise(baseline[n], context[n], baseline[n].dtype).tolist()
    frobenius, spectral = model.weight_norms[layer]
    wire = found.to(found.weight.output.dtype)
    return [
        Update(
            layer=layer,
            position=position,
            weight=model.family.weight_in.format(layer=layer),
            shape=(w_in.shape[0], w_in.shape[1]),
            rank=int(norm > 0),
            norm=norm,
            relative_norm=ratio(norm, frobenius),
            spectral_share=ratio(norm, spectral),
            mlp_in=mlp_in[i],
            resid_mid=resid_mid[i],
            below_noise=noise[i],
            factors=factors(wire.weight[i]) if "factors" in include else None,
            bias=wire.bias[i].cpu() if "bias" in include else None,
        )
        for i, (position, norm) in enumerate(
            zip(positions, found.weight.norm.tolist(), strict=True)
        )
    ]


def _norms(compared: Comparison) -> list[Norms]:
    """The norms at each position."""
    columns = (
        compared.norm_with_context.tolist(),
        compared.norm_baseline.tolist(),
        compared.norm_difference.tolist(),
        ratios(compared.cosine),
    )
    return [Norms(*row) for row in zip(*columns, strict=True)]
