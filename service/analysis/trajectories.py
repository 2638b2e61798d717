"""Trajectories: the weights' way as the context is read, token by token or span by span.

The prefixes are n + 1 ordinary runs whose query stays at its place; laid out as one pack they are
2n + 1 rows for a query of one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.analysis.numbers import finite, ratios
from service.analysis.pairs import Pair, Span
from service.engine import Model, Question, Site
from service.theory import below_noise, trajectory


@dataclass(frozen=True)
class Step:
    """What reading one span does.

    Args:
        span: Of the context's tokens, half-open.
        norm: ‖ΔW‖ after the step.
        step_norm: ‖W after − W before‖.
        gradient_norm: The step as a gradient: step_norm / η.
        cosine_to_final: Of ΔW after the step and of the whole context; None where one is zero or
            noise.
        loss_before: The step's implicit loss at the weight before it.
        loss_after: The same at the weight after it.
    """

    span: Span
    norm: float
    step_norm: float
    gradient_norm: float
    cosine_to_final: float | None
    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class LayerTrajectory:
    """One layer's way at one position.

    Args:
        layer: From 0 up.
        position: Index into the query.
        eta: η = 1/‖n_0‖², what a gradient is multiplied by.
        steps: In the order of reading.
        below_noise: Whether ΔW of the whole context is within the dtype's rounding; ratios to it
            are None then.
        telescoping_error: ‖Σ steps − ΔW‖ / ‖ΔW‖; None where ΔW is zero or below noise.
    """

    layer: int
    position: int
    eta: float
    below_noise: bool
    steps: tuple[Step, ...]
    telescoping_error: float | None


def trajectories(
    model: Model, pair: Pair, layers: Sequence[int], spans: Sequence[Span]
) -> Question[tuple[LayerTrajectory, ...]]:
    """The way of each layer at each asked position; baseline `matched` or `anchored`.

    Args:
        model: The resident model.
        pair: The run with context and its baseline.
        layers: From 0 up.
        spans: Cover the context without gaps.
    """
    reads = pair.reads(layers, ("mlp_in",))
    ends = [spans[0][0], *(stop for _, stop in spans)]
    readings = yield [pair.keeping(range(end)).run(reads) for end in ends]
    found: list[LayerTrajectory] = []
    for layer in layers:
        site = Site(layer, "mlp_in")
        for i, position in enumerate(pair.positions):
            read = torch.stack([reading[site][i] for reading in readings])
            found.append(_way(model, layer, position, spans, read))
        yield ()
    return tuple(found)


def trajectory_rows(pair: Pair, spans: Sequence[Span]) -> int:
    """Rows of all the runs, the shared ones once."""
    return len(pair.context) + len(pair.query) * (len(spans) + 1)


def _way(
    model: Model,
    layer: int,
    position: int,
    spans: Sequence[Span],
    readings: Tensor,
) -> LayerTrajectory:
    way = trajectory(readings, model.blocks[layer].w_in.weight)
    noise = bool(below_noise(readings[0], readings[-1], readings.dtype))
    columns = (
        spans,
        way.norm.tolist(),
        way.step_norm.tolist(),
        way.gradient_norm.tolist(),
        [None] * len(spans) if noise else ratios(way.cosine_to_final),
        way.loss_before.tolist(),
        way.loss_after.tolist(),
    )
    steps = tuple(Step(*row) for row in zip(*columns, strict=True))
    error = None if noise else finite(way.telescoping_error)
    return LayerTrajectory(layer, position, way.eta, noise, steps, error)
