"""`POST /v1/attributions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field

from schemas.common import Answer
from schemas.pairs import SEED_CONTEXT, SEED_QUERY, PairAnswer, PairRequest, Span


class AttributionsRequest(PairRequest):
    """A pair, and the spans of its context. Baselines `matched` and `anchored`, stream `free`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"context": SEED_CONTEXT, "query": SEED_QUERY, "layers": [-1]},
                {"context": [5, 6, 7, 8], "query": [9], "layers": [0], "spans": [[0, 1], [2, 4]]},
            ]
        }
    )

    spans: Annotated[
        list[Span] | None,
        Field(
            description="Half-open spans of context tokens, in ascending order. The anchor of "
            "`anchored` is token 0 and belongs to no span. Null: sentences."
        ),
    ] = None


@dataclass(frozen=True)
class SpanShare(Answer):
    """The contribution of one span to the update of the whole context."""

    span: Annotated[Sequence[int], Field(description="[start, end) of the context's tokens.")]
    leave_one_out: Annotated[
        float,
        Field(description="‖ΔW‖ from the run without the span to the run with the whole context."),
    ]
    only_this_span: Annotated[
        float,
        Field(description="‖ΔW‖ of the span alone, its positions kept, relative to the baseline."),
    ]
    cosine_to_total: Annotated[
        float | None,
        Field(
            description="Cosine of the span's ΔW and the whole context's. Null if one is 0 or "
            "below noise."
        ),
    ]
    share: Annotated[
        float | None,
        Field(description="⟨ΔW of the span, ΔW⟩ / ‖ΔW‖². Null if ΔW is 0 or below noise."),
    ]


@dataclass(frozen=True)
class LayerAttribution(Answer):
    """The attribution of one layer at one query position."""

    layer: int
    position: Annotated[int, Field(description="Index into the query.")]
    norm: Annotated[float, Field(description="‖ΔW‖ of the whole context.")]
    below_noise: Annotated[
        bool,
        Field(
            description="True if ΔW of the whole context is rounding. Ratios to it are null then."
        ),
    ]
    order_effect: Annotated[
        float | None,
        Field(description="‖ΔW − ΔW with the spans in reverse order‖ / ‖ΔW‖."),
    ]
    spans: Sequence[SpanShare]


@dataclass(frozen=True)
class AttributionsAnswer(PairAnswer):
    """One entry per layer and position."""

    layers: Sequence[LayerAttribution]
