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
from service.analysis.factors import finite
from service.analysis.inputs import require_reading_in_parts, resolve_layers
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.pieces import Piece, exists, first_weights, pieces, update_cost
from service.analysis.spans import given_spans, sentence_spans
from service.analysis.unread import Part, in_pieces, read
from service.engine import Activations, AnswerSize, Model, Plan, Question, numbers, plan
from service.theory import below_noise, update_on_base


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
    received = yield [prompt.run(reads) for prompt in prompts]
    count = len(pair.positions)
    cut = pieces(model, layers, count, (2 + 2 * len(spans)) * update_cost(model))

    def form(piece: Piece) -> Part:
        return _part(model, pair.positions[piece.rows], spans, piece, received)

    unread = yield from in_pieces(cut, form, [count], received)
    ((entries,),) = yield from read(unread)
    return AttributionsAnswer(*relation, entries)


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


def _part(
    model: Model,
    positions: Sequence[int],
    spans: Sequence[Span],
    piece: Piece,
    received: Sequence[Activations],
) -> Part:
    """Form the attributions of a piece from its runs in the order in which they were asked."""
    count = len(spans)
    n = piece.stacked([[run] for run in received], "mlp_in")[:, 0]
    whole, baseline, reverse = torch.split(n[:, :3], 1, 1)
    alone, rest = n[:, 3::2], n[:, 4::2]
    # The update of the whole context, of each span alone, from the reversed context, and of each
    # span on top of the others.
    each = (-1, count, -1, -1)
    update = update_on_base(
        torch.cat([baseline, baseline.expand(each), baseline, rest], 1),
        torch.cat([baseline, baseline.expand(each), reverse, rest], 1),
        torch.cat([whole, alone, whole, whole.expand(each)], 1),
        first_weights(model, piece),
    )
    total, only, order = update[:, :1], update[:, 1 : count + 1], update[:, count + 1]
    # Rows come before the updates, as the entries of an answer need them.
    norms = update.norm.transpose(1, 2)
    tensors = [
        norms,
        only.cosine(total).transpose(1, 2),
        (only.inner(total) / total.norm.square()).transpose(1, 2),
        order.norm / norms[:, :, 0],
        below_noise(n[:, 1], n[:, 0], n.dtype),
    ]

    def finish(host: Sequence[Tensor]) -> list[list[LayerAttribution]]:
        figures = [numbers(values) for values in host]
        return [
            [
                _attribution(layer, position, spans, *(values[i][row] for values in figures))
                for row, position in enumerate(positions)
            ]
            for i, layer in enumerate(piece.layers)
        ]

    return Part(tensors, finish, [exists(norms)])


def _attribution(
    layer: int,
    position: int,
    spans: Sequence[Span],
    norms: Sequence[float],
    cosines: Sequence[float],
    shares: Sequence[float],
    order: float,
    noise: bool,
) -> LayerAttribution:
    """The entry of one layer and position, from its figures in the order of `_part`."""
    size, only, added = norms[0], norms[1 : len(spans) + 1], norms[-len(spans) :]

    def told(value: float) -> float | None:
        """A figure relative to ΔW; None where ΔW is rounding."""
        return None if noise else finite(value)

    return LayerAttribution(
        layer,
        position,
        size,
        noise,
        told(order),
        [
            SpanShare(span, more, alone, told(cosine), told(share))
            for span, more, alone, cosine, share in zip(
                spans, added, only, cosines, shares, strict=True
            )
        ],
    )
