"""Attributions: the contribution of each span of the context to the update.

With n_0 the baseline's mlp_in and every ΔW below on it as the base:

    only_this_span   ‖ΔW_s‖ of the span alone, positions kept
    share            ⟨ΔW_s, ΔW⟩ / ‖ΔW‖²
    leave_one_out    ‖ΔW‖ from the run without the span (its base) to the run with all
    order_effect     ‖ΔW − ΔW of the spans in reverse‖ / ‖ΔW‖
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schemas.attributions import (
    AttributionsAnswer,
    AttributionsRequest,
    LayerAttribution,
    SpanShare,
)
from schemas.pairs import Span
from service.analysis.factors import ratios
from service.analysis.inputs import require_reading_in_parts, resolve_layers
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.spans import given_spans, sentence_spans
from service.engine import Activations, AnswerSize, Model, Plan, Question, Site, plan
from service.theory import RankOne, below_noise, update_on_base


def plan_attributions(model: Model, request: AttributionsRequest) -> Plan[AttributionsAnswer]:
    """Plan an attribution to spans of the context. Raises `Refused` if an input does not fit."""
    layers = resolve_layers(model, request.layers)
    pair = resolve_pair(model, request.context, request.query, request.baseline, request.positions)
    require_reading_in_parts(pair.kind, request.stream)
    given = request.spans
    spans = sentence_spans(model, pair) if given is None else given_spans(pair, given, cover=False)
    size = AnswerSize(
        entries=len(layers) * len(pair.positions) * (1 + len(spans)),
        tokens=pair.echoed_tokens,
        entry_bytes=256,
    )
    return plan(model, attributions(model, pair, layers, spans), size)


def attributions(
    model: Model, pair: Pair, layers: Sequence[int], spans: Sequence[Span]
) -> Question[AttributionsAnswer]:
    """Attribute each layer's update at each requested position to the spans.

    Args:
        model: The resident model.
        pair: The run with context and its baseline, `matched` or `anchored`.
        layers: Layers from 0.
        spans: Spans in ascending order. They need not cover the context.
    """
    relation = pair.relation(model)
    reads = pair.reads(layers, ("mlp_in",))
    anchor = range(pair.head)
    prompts = [pair.with_context, pair.baseline, pair.reordered(_reversed(pair, spans))]
    for start, stop in spans:
        others = [i for i in range(len(pair.context)) if not start <= i < stop]
        prompts += [pair.keeping([*anchor, *range(start, stop)]), pair.keeping(others)]
    whole, baseline, reverse, *parts = yield [prompt.run(reads) for prompt in prompts]
    found = [
        attribution
        for layer in layers
        for attribution in _of_layer(
            model, pair.positions, layer, spans, whole, baseline, reverse, parts
        )
    ]
    return AttributionsAnswer(*relation, found)


def _reversed(pair: Pair, spans: Sequence[Span]) -> list[int]:
    """Indices of the context with its spans in reverse order; other tokens keep their place, among
    them the special tokens at the beginning."""
    moved = [(max(start, pair.beginning), stop) for start, stop in spans if stop > pair.beginning]
    order: list[int] = []
    end = 0
    for (start, stop), (other_start, other_stop) in zip(moved, reversed(moved), strict=True):
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
    site, w_in = Site(layer, "mlp_in"), model.blocks[layer].w_in
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
            [SpanShare(span, *figures) for span, figures in zip(spans, each, strict=True)],
        )
        for position, size, below, effect, each in rows
    ]
