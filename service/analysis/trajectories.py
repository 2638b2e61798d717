"""Trajectories: the weights as the context is read, token by token or span by span.

The prefixes of the context are n + 1 ordinary runs whose query keeps its positions. In one pack
they share the context's rows, so a query of one token needs 2n + 1 rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from schemas.pairs import Span
from schemas.trajectories import LayerTrajectory, Step, TrajectoriesAnswer, TrajectoriesRequest
from service.analysis.factors import finite
from service.analysis.inputs import require_reading_in_parts, resolve_layers
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.pieces import Piece, exists, first_weights, pieces, update_cost
from service.analysis.spans import given_spans, token_spans
from service.analysis.unread import Part, in_pieces, read
from service.engine import Activations, AnswerSize, Model, Plan, Question, numbers, plan
from service.theory import below_noise, trajectory


def plan_trajectories(model: Model, request: TrajectoriesRequest) -> Plan[TrajectoriesAnswer]:
    """Plan the trajectory of each layer's weight. Raises `Refused` if an input does not fit."""
    layers = resolve_layers(model, request.layers)
    pair = resolve_pair(model, request.context, request.query, request.baseline, request.positions)
    require_reading_in_parts(pair.kind, request.stream)
    given = request.spans
    spans = token_spans(pair) if given is None else given_spans(pair, given, cover=True)
    size = AnswerSize(
        entries=len(layers) * len(pair.positions) * (1 + len(spans)),
        tokens=pair.echoed_tokens,
        entry_bytes=256,
    )
    return plan(model, trajectories(model, pair, layers, spans), size)


def trajectories(
    model: Model, pair: Pair, layers: Sequence[int], spans: Sequence[Span]
) -> Question[TrajectoriesAnswer]:
    """Follow each layer's weight at each requested position.

    Args:
        model: The resident model.
        pair: The run with context and its baseline, `matched` or `anchored`.
        layers: Layers from 0.
        spans: Spans that cover the context without gaps.
    """
    relation = pair.relation(model)
    reads = pair.reads(layers, ("mlp_in",))
    ends = [spans[0][0], *(stop for _, stop in spans)]
    readings = yield [pair.keeping(range(end)).run(reads) for end in ends]
    count = len(pair.positions)
    cut = pieces(model, layers, count, (2 + len(spans)) * update_cost(model))

    def form(piece: Piece) -> Part:
        return _part(model, pair.positions[piece.rows], spans, piece, readings)

    unread = yield from in_pieces(cut, form, [count], readings)
    ((entries,),) = yield from read(unread)
    return TrajectoriesAnswer(*relation, entries)


def _part(
    model: Model,
    positions: Sequence[int],
    spans: Sequence[Span],
    piece: Piece,
    readings: Sequence[Activations],
) -> Part:
    """Follow the weights of a piece, from its readings in the order of the steps."""
    n = piece.stacked([[reading] for reading in readings], "mlp_in")[:, 0].transpose(1, 2)
    found = trajectory(n, first_weights(model, piece))
    noise = below_noise(n[:, :, 0], n[:, :, -1], n.dtype)
    tensors = [
        found.norm,
        found.step_norm,
        found.gradient_norm,
        found.cosine_to_final,
        found.loss_before,
        found.loss_after,
        found.eta,
        found.telescoping_error,
        noise,
    ]

    def finish(host: Sequence[Tensor]) -> list[list[LayerTrajectory]]:
        figures = [numbers(values) for values in host]
        return [
            [
                _entry(layer, position, spans, [values[i][row] for values in figures])
                for row, position in enumerate(positions)
            ]
            for i, layer in enumerate(piece.layers)
        ]

    return Part(tensors, finish, [exists(found.norm), exists(found.eta)])


def _entry(
    layer: int, position: int, spans: Sequence[Span], figures: Sequence[Any]
) -> LayerTrajectory:
    """The entry of one layer and position, from its figures in the order of `_part`."""
    *columns, eta, error, noise = figures
    steps = [
        Step(span, size, step, gradient, None if noise else finite(cosine), before, after)
        for span, size, step, gradient, cosine, before, after in zip(spans, *columns, strict=True)
    ]
    return LayerTrajectory(layer, position, eta, noise, steps, None if noise else finite(error))
