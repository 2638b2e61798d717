"""`POST /v1/trajectories`."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from schemas.common import Answer
from schemas.pairs import SEED_CONTEXT, SEED_QUERY, PairAnswer, PairRequest, Span


class TrajectoriesRequest(PairRequest):
    """Whose way, in which steps. Baselines `matched` and `anchored`, stream `free`."""

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
            description="half-open spans of context tokens that cover the context without gaps "
            "(the anchor of `anchored` is token 0 and belongs to none); null: every token"
        ),
    ] = None


class Step(Answer):
    """What reading one span does: W after = W before − η·G."""

    span: list[int]
    norm: Annotated[float, Field(description="‖ΔW‖ after the step, Frobenius, float64")]
    step_norm: Annotated[float, Field(description="‖W after − W before‖ = η·gradient_norm")]
    gradient_norm: Annotated[float, Field(description="‖G‖")]
    cosine_to_final: Annotated[
        float | None, Field(description="of ΔW and that of the whole context; null where one is 0")
    ]
    loss_before: Annotated[float, Field(description="trace(Gᵀ·W before): the implicit loss")]
    loss_after: Annotated[float, Field(description="trace(Gᵀ·W after)")]


class LayerTrajectory(Answer):
    """One layer's way at one query position."""

    layer: int
    position: Annotated[int, Field(description="index into the query")]
    eta: Annotated[float, Field(description="1/‖n₀‖², the step size of the gradient form")]
    below_noise: Annotated[
        bool, Field(description="ΔW of the whole context is rounding; ratios to it are null")
    ]
    steps: list[Step]
    telescoping_error: Annotated[
        float | None, Field(description="‖Σ steps − ΔW‖ / ‖ΔW‖, rounding; null where ΔW is zero")
    ]


class TrajectoriesAnswer(PairAnswer):
    """One entry a layer and position."""

    layers: list[LayerTrajectory]
