"""`POST /v1/trajectories`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field

from schemas.common import Answer
from schemas.pairs import SEED_CONTEXT, SEED_QUERY, PairAnswer, PairRequest, Span


class TrajectoriesRequest(PairRequest):
    """A pair, and the steps in which its context is read.

    Baselines `matched` and `anchored`, stream `free`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"context": SEED_CONTEXT, "query": SEED_QUERY, "layers": [-1]},
                {"context": [5, 6, 7, 8], "query": [9], "layers": [0], "spans": [[0, 1], [1, 4]]},
            ]
        }
    )

    spans: Annotated[
        list[Span] | None,
        Field(
            description="Half-open spans of context tokens that cover the context without gaps. "
            "The anchor of `anchored` is token 0 and belongs to no span. Null: one step per token."
        ),
    ] = None


@dataclass(frozen=True)
class Step(Answer):
    """The effect of reading one span: W after = W before − η·G (arXiv 2507.16003)."""

    span: Annotated[Sequence[int], Field(description="[start, end) of the context's tokens.")]
    norm: Annotated[float, Field(description="‖ΔW‖ after the step, Frobenius, float64.")]
    step_norm: Annotated[float, Field(description="‖W after − W before‖ = η·gradient_norm.")]
    gradient_norm: Annotated[float, Field(description="‖G‖.")]
    cosine_to_final: Annotated[
        float | None,
        Field(
            description="Cosine of ΔW after the step and ΔW of the whole context. Null if one is 0 "
            "or below noise."
        ),
    ]
    loss_before: Annotated[float, Field(description="Implicit loss trace(Gᵀ·W before).")]
    loss_after: Annotated[float, Field(description="Implicit loss trace(Gᵀ·W after).")]


@dataclass(frozen=True)
class LayerTrajectory(Answer):
    """The trajectory of one layer's weight at one query position."""

    layer: int
    position: Annotated[int, Field(description="Index into the query.")]
    eta: Annotated[float, Field(description="1/‖n₀‖², the step size of the gradient form.")]
    below_noise: Annotated[
        bool,
        Field(
            description="True if ΔW of the whole context is rounding. Ratios to it are null then."
        ),
    ]
    steps: Sequence[Step]
    telescoping_error: Annotated[
        float | None,
        Field(description="Rounding error ‖Σ steps − ΔW‖ / ‖ΔW‖. Null if ΔW is 0 or below noise."),
    ]


@dataclass(frozen=True)
class TrajectoriesAnswer(PairAnswer):
    """One entry per layer and position."""

    layers: Sequence[LayerTrajectory]
