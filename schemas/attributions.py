"""`POST /v1/attributions`."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from schemas.common import Answer
from schemas.pairs import SEED_CONTEXT, SEED_QUERY, PairAnswer, PairRequest, Span


class AttributionsRequest(PairRequest):
    """Of which spans. Baselines `matched` and `anchored`, stream `free`."""

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
            description="half-open spans of context tokens, in order (the anchor of `anchored` is "
            "token 0 and belongs to none); null: sentences"
        ),
    ] = None


class SpanShare(Answer):
    """What one span contributes to the update of the whole context."""

    span: list[int]
    leave_one_out: Annotated[
        float, Field(description="‖ΔW‖ from the run without the span to the run with all")
    ]
    only_this_span: Annotated[
        float, Field(description="‖ΔW‖ of the span alone, positions kept, on the baseline")
    ]
    cosine_to_total: Annotated[
        float | None, Field(description="of the span's ΔW and the whole's; null where one is zero")
    ]
    share: Annotated[
        float | None, Field(description="⟨ΔW of the span, ΔW⟩ / ‖ΔW‖²; null where ΔW is zero")
    ]


class LayerAttribution(Answer):
    """One layer at one query position."""

    layer: int
    position: Annotated[int, Field(description="index into the query")]
    norm: Annotated[float, Field(description="‖ΔW‖ of the whole context")]
    below_noise: Annotated[
        bool, Field(description="ΔW of the whole context is rounding; ratios to it are null")
    ]
    order_effect: Annotated[
        float | None, Field(description="‖ΔW − ΔW of the spans in reverse order‖ / ‖ΔW‖")
    ]
    spans: list[SpanShare]


class AttributionsAnswer(PairAnswer):
    """One entry a layer and position."""

    layers: list[LayerAttribution]
