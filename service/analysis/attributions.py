"""Attributions: what each span of the context contributes to the update.

With n_0 the baseline's mlp_in and every ΔW below on it as the base:

    only_this_span   ‖ΔW_s‖ of the span alone, positions kept
    share            ⟨ΔW_s, ΔW⟩ / ‖ΔW‖²
    leave_one_out    ‖ΔW‖ from the run without the span (there the base) to the run with all
    order_effect     ‖ΔW − ΔW of the spans in reverse‖ / ‖ΔW‖
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.analysis.numbers import ratios
from service.analysis.pairs import Pair, Span
from service.engine import Activations, Model, Question, Site
from service.theory import RankOne, below_noise, update_on_base


@dataclass(frozen=True)
class SpanShare:
    """One span's part.

    Args:
        span: Of the context's tokens, half-open.
        leave_one_out: ‖ΔW‖ of what the span adds to the rest of the context.
        only_this_span: ‖ΔW‖ of the span without the rest.
        cosine_to_total: Of the latter and ΔW of the whole context; None where one is zero.
        share: The latter's projection on ΔW of the whole context; None where that is zero.
    """

    span: Span
    leave_one_out: float
    only_this_span: float
    cosine_to_total: float | None
    share: float | None


@dataclass(frozen=True)
class LayerAttribution:
    """One layer at one position.

    Args:
        layer: From 0 up.
        position: Index into the query.
        norm: ‖ΔW‖ of the whole context.
        below_noise: Whether that is within the dtype's rounding; ratios to it are None then.
        order_effect: ‖ΔW − ΔW of the spans in reverse‖ / ‖ΔW‖; None where that does not exist.
        spans: In the order of the context.
    """

    layer: int
    position: int
    norm: float
    below_noise: bool
    order_effect: float | None
    spans: tuple[SpanShare, ...]


def attributions(
    model: Model, pair: Pair, layers: Sequence[int], spans: Sequence[Span]
) -> Question[tuple[LayerAttribution, ...]]:
    """What the spans contribute in each layer, at each asked position.

    Args:
        model: The resident model.
        pair: The run with context and its baseline, `matched` or `anchored`.
        layers: From 0 up.
        spans: In order; they need not cover the context.
    """
    reads = pair.reads(layers, ("mlp_in",))
    anchor = range(int(pair.anchored))
    prompts = [pair.with_context, pair.baseline, pair.reordered(_reversed(pair, spans))]
    for start, stop in spans:
        others = [i for i in range(len(pair.context)) if not start <= i < stop]
        prompts += [pair.keeping([*anchor, *range(start, stop)]), pair.keeping(others)]
    whole, baseline, reverse, *parts = yield [prompt.run(reads) for prompt in prompts]
    return tuple(
        attribution
        for layer in layers
        for attribution in _of_layer(
            model, pair.positions, layer, spans, whole, baseline, reverse, parts
        )
    )


def attribution_rows(pair: Pair, spans: Sequence[Span]) -> int:
    """Rows of all the runs, before any is shared."""
    alone = len(pair.query) + int(pair.anchored)
    return pair.rows + len(pair.with_context.ids) * (1 + len(spans)) + alone * len(spans)


def _reversed(pair: Pair, spans: Sequence[Span]) -> list[int]:
    """The context's indices with the spans in reverse; what lies between them keeps its place."""
    order: list[int] = []
    end = 0
    for (start, stop), (other_start, other_stop) in zip(spans, reversed(spans), strict=True):
        order += [*range(end, start), *range(other_start, other_stop)]
        end = stop
    return [*order, *range(end, len(pair.context))]


def _of_layer(
    model: Model,
    positions: Sequence[int],
    layer: int,
    spans: Sequence[Span],
    whole: Activations,
    baseline: Activations,
    reverse: Activations,
    parts: Sequence[Activations],
) -> list[LayerAttribution]:
    site, w_in = Site(layer, "mlp_in"), model.blocks[layer].w_in.weight
    n, n_whole = baseline[site], whole[site]

    def seen(to: Activations) -> RankOne:
        return update_on_base(n, n, to[site], w_in)

    total = seen(whole)
    noise = below_noise(n, n_whole, n.dtype)
    alone = [seen(only) for only in parts[::2]]
    added = [update_on_base(rest[site], rest[site], n_whole, w_in) for rest in parts[1::2]]

    def told(values: Tensor) -> list[float | None]:
        return ratios(values.masked_fill(noise, torch.nan))

    columns = [
        zip(
            more.norm.tolist(),
            only.norm.tolist(),
            told(only.cosine(total)),
            told(only.inner(total) / total.norm.square()),
            strict=True,
        )
        for more, only in zip(added, alone, strict=True)
    ]
    order = update_on_base(n, reverse[site], n_whole, w_in).norm / total.norm
    rows = zip(
        positions,
        total.norm.tolist(),
        noise.tolist(),
        told(order),
        zip(*columns, strict=True),
        strict=True,
    )
    return [
        LayerAttribution(
            layer,
            position,
            size,
            below,
            effect,
            tuple(SpanShare(span, *figures) for span, figures in zip(spans, each, strict=True)),
        )
        for position, size, below, effect, each in rows
    ]
