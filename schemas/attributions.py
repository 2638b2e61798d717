"""`POST /v1/attributions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.common import Answer, with_examples
from schemas.pairs import SEED, PairAnswer, PairRequest, QueryIndex, Span


class AttributionsRequest(PairRequest):
    """A pair, and the spans of its context. Baselines `matched` and `anchored`, stream `free`."""

    model_config = with_examples(
        {**SEED, "layers": [-1]},
        {"context": [5, 6, 7, 8], "query": [9], "layers": [0], "spans": [[0, 1], [2, 4]]},
    )

    spans: list[Span] | None = None
    """Half-open spans of context tokens, in ascending order. The anchor of `anchored` is token 0
    and belongs to no span. By default, sentences."""


@dataclass(frozen=True)
class SpanShare(Answer):
    """The contribution of one span to the update of the whole context."""

    span: Sequence[int]
    """[start, end) of the context's tokens."""
    leave_one_out: float
    """‖ΔW‖ from the run without the span to the run with the whole context."""
    only_this_span: float
    """‖ΔW‖ of the span alone, its positions kept, relative to the baseline."""
    cosine_to_total: float | None
    """Cosine of the span's ΔW and the whole context's. Null if one is 0 or below noise."""
    share: float | None
    """⟨ΔW of the span, ΔW⟩ / ‖ΔW‖². Null if ΔW is 0 or below noise."""


@dataclass(frozen=True)
class LayerAttribution(Answer):
    """The attribution of one layer at one query position."""

    layer: int
    position: QueryIndex
    norm: float
    """‖ΔW‖ of the whole context."""
    below_noise: bool
    """True if ΔW of the whole context is rounding. Ratios to it are null then."""
    order_effect: float | None
    """‖ΔW − ΔW with the spans in reverse order‖ / ‖ΔW‖."""
    spans: Sequence[SpanShare]


@dataclass(frozen=True)
class AttributionsAnswer(PairAnswer):
    """One entry per layer and position."""

    layers: Sequence[LayerAttribution]
