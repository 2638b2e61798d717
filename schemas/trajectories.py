"""`POST /v1/trajectories`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.common import Answer, with_examples
from schemas.pairs import SEED, PairAnswer, PairRequest, QueryIndex, Span


class TrajectoriesRequest(PairRequest):
    """A pair, and the steps in which its context is read.

    Baselines `matched` and `anchored`, stream `free`.
    """

    model_config = with_examples(
        {**SEED, "layers": [-1]},
        {"context": [5, 6, 7, 8], "query": [9], "layers": [0], "spans": [[0, 1], [1, 4]]},
    )

    spans: list[Span] | None = None
    """Half-open spans of context tokens that cover the context without gaps. The anchor of
    `anchored` is token 0 and belongs to no span. By default, each token is one step."""


@dataclass(frozen=True)
class Step(Answer):
    """The effect of reading one span: W after = W before − η·G (arXiv 2507.16003)."""

    span: Sequence[int]
    """[start, end) of the context's tokens."""
    norm: float
    """‖ΔW‖ after the step, Frobenius, float64."""
    step_norm: float
    """‖W after − W before‖ = η·gradient_norm."""
    gradient_norm: float
    """‖G‖."""
    cosine_to_final: float | None
    """Cosine of ΔW after the step and ΔW of the whole context. Null if one is 0 or below noise."""
    loss_before: float
    """Implicit loss trace(Gᵀ·W before)."""
    loss_after: float
    """Implicit loss trace(Gᵀ·W after)."""


@dataclass(frozen=True)
class LayerTrajectory(Answer):
    """The trajectory of one layer's weight at one query position."""

    layer: int
    position: QueryIndex
    eta: float
    """1/‖n₀‖², the step size of the gradient form."""
    below_noise: bool
    """True if ΔW of the whole context is rounding. Ratios to it are null then."""
    steps: Sequence[Step]
    telescoping_error: float | None
    """Rounding error ‖Σ steps − ΔW‖ / ‖ΔW‖. Null if ΔW is 0 or below noise."""


@dataclass(frozen=True)
class TrajectoriesAnswer(PairAnswer):
    """One entry per layer and position."""

    layers: Sequence[LayerTrajectory]
