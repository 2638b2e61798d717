"""Trajectories: the weights as the context is read, token by token or span by span.

The prefixes of the context are n + 1 ordinary runs whose query keeps its positions. In one pack
they share the context's rows, so a query of one token needs 2n + 1 rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schemas.pairs import Span
from schemas.trajectories import LayerTrajectory, Step, TrajectoriesAnswer, TrajectoriesRequest
from service.analysis.factors import finite, ratios
from service.analysis.inputs import require_reading_in_parts, resolve_layers
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.spans import given_spans, token_spans
from service.engine import AnswerSize, Model, Plan, Question, Site, plan
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
    found: list[LayerTrajectory] = []
    for layer in layers:
        site = Site(layer, "mlp_in")
        for i, position in enumerate(pair.positions):
            read = torch.stack([reading[site][i] for reading in readings])
            found.append(_layer_trajectory(model, layer, position, spans, read))
        yield ()
    return TrajectoriesAnswer(*relation, found)


def _layer_trajectory(
    model: Model,
    layer: int,
    position: int,
    spans: Sequence[Span],
    readings: Tensor,
) -> LayerTrajectory:
    found = trajectory(readings, model.blocks[layer].w_in)
    noise = bool(below_noise(readings[0], readings[-1], readings.dtype))
    columns = (
        spans,
        found.norm.tolist(),
        found.step_norm.tolist(),
        found.gradient_norm.tolist(),
        [None] * len(spans) if noise else ratios(found.cosine_to_final),
        found.loss_before.tolist(),
        found.loss_after.tolist(),
    )
    steps = [Step(*row) for row in zip(*columns, strict=True)]
    error = None if noise else finite(found.telescoping_error)
    return LayerTrajectory(layer, position, found.eta, noise, steps, error)
