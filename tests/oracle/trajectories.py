"""ΔW as the context is read, with a separate run for each prefix.

The formulas are those of docs/theory.md, "As the context is read". n_i is the query's mlp_in after
the first i spans; the query keeps its positions of the full run:

    ΔW_i = n_0ᵀ((n_i - n_0) W1) / |n_0|²      W_i = W1 + ΔW_i      η = 1 / |n_0|²
    G_i  = n_0ᵀ((n_i - n_{i+1}) W1)           W_{i+1} - W_i = -η G_i
    loss_i(W) = trace(G_iᵀ W)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .checkpoint import Array
from .questions import Question, Span
from .updates import cancellation, cosine, norm, on_base, ratio


@dataclass(frozen=True)
class Step:
    """The effect of reading one span."""

    span: Span
    norm: float  # |ΔW_{i+1}|: after the step
    step_norm: float  # |W_{i+1} - W_i|
    gradient_norm: float  # |G_i|
    cosine_to_final: float  # cos(ΔW_{i+1}, ΔW(C))
    loss_before: float  # loss_i(W_i)
    loss_after: float  # loss_i(W_{i+1})
    loss_scale: float  # |G_i| |W_i|: rounding errors of the losses are relative to it
    cancellation: float  # (|n_{i+1}| + |n_0|) / |n_{i+1} - n_0|, for `norm`
    step_cancellation: float  # (|n_{i+1}| + |n_i|) / |n_{i+1} - n_i|, for `step_norm`


@dataclass(frozen=True)
class Trajectory:
    """The trajectory of one layer and query position."""

    eta: float  # 1 / |n_0|²
    norm: float  # |ΔW(C)|
    steps: tuple[Step, ...]
    telescoping_error: float  # |sum of the steps - ΔW(C)| / |ΔW(C)|


def trajectory(
    question: Question, layer: int, position: int = -1, spans: Sequence[Span] | None = None
) -> Trajectory:
    """The trajectory over the spans (default: every token of the listed context).

    With ``anchored`` the anchor is in every run; a step that reads only the anchor is zero.
    """
    chosen = token_spans(question) if spans is None else tuple(spans)
    weight = question.model.blocks[layer].w_in  # (d_model, d_mlp)
    readings = prefix_readings(question, layer, position, chosen)  # n_0 … n_k
    first = readings[0]
    final = on_base(first, first, readings[-1], weight)  # ΔW(C)
    steps = []
    total = np.zeros_like(weight)
    for span, before, after in zip(chosen, readings, readings[1:], strict=False):
        gradient = np.outer(first, (before - after) @ weight)  # G_i
        weight_before = weight + on_base(first, first, before, weight)  # W_i
        weight_after = weight + on_base(first, first, after, weight)  # W_{i+1}
        change = on_base(first, before, after, weight)  # W_{i+1} - W_i
        total += change
        steps.append(
            Step(
                span=span,
                norm=norm(on_base(first, first, after, weight)),
                step_norm=norm(change),
                gradient_norm=norm(gradient),
                cosine_to_final=cosine(on_base(first, first, after, weight), final),
                loss_before=float((gradient * weight_before).sum()),
                loss_after=float((gradient * weight_after).sum()),
                loss_scale=norm(gradient) * norm(weight_before),
                cancellation=cancellation(after, first),
                step_cancellation=cancellation(after, before),
            )
        )
    return Trajectory(
        eta=1.0 / float(first @ first),
        norm=norm(final),
        steps=tuple(steps),
        telescoping_error=ratio(norm(total - final), norm(final)),
    )


def token_spans(question: Question) -> tuple[Span, ...]:
    """One span for every token of the listed context, the added anchor included."""
    return tuple((i, i + 1) for i in range(len(question.context)))


def prefix_readings(
    question: Question, layer: int, position: int, spans: Sequence[Span]
) -> list[Array]:
    """n_0, n_1, … (d_model): mlp_in after no span, after the first, after the first two, …"""
    if question.baseline not in ("matched", "anchored"):
        raise ValueError("a trajectory's baseline is matched or anchored")
    kept = set(question.always_kept)
    readings = [question.trace(question.keeping(kept))[layer, "mlp_in"][position]]
    for begin, end in spans:
        kept |= set(range(begin, end))
        readings.append(question.trace(question.keeping(kept))[layer, "mlp_in"][position])
    return readings
