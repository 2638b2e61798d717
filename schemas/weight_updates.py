"""`POST /v1/weight-updates`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal

from pydantic import Field

from schemas.common import UNSET, Answer, Asked, Encoding, Text, Values, with_examples
from schemas.pairs import SEED, PairAnswer, PairRequest, QueryIndex

Include = Literal["factors", "bias", "next_tokens", "split"]


class WeightUpdatesRequest(PairRequest):
    """A pair, and the parts of its updates to return."""

    model_config = with_examples(
        {**SEED, "include": []},
        {
            **SEED,
            "baseline": "anchored",
            "layers": [5],
            "include": ["factors", "bias", "next_tokens"],
            "encoding": "base64",
        },
        {**SEED, "include": [], "probe_queries": [" Paris", " is"]},
    )

    include: Annotated[list[Include], Field(max_length=4)] = ["factors"]
    """Any of `factors`, `bias`, `next_tokens`, `split`. `split` needs baseline `alone` and stream
    `free`. [] returns the norms alone and is cheap."""
    joint: bool = False
    """One patch of both MLP weights that is exact at all positions (two or more), stream `free`.
    The answer has one entry per layer."""
    probe_queries: list[Text] = []
    """Further queries after the same context and baseline. Each entry reports the error of its
    update on the last token of every probe query."""
    encoding: Encoding = "json"


@dataclass(frozen=True)
class Norms(Answer):
    """One activation in both runs, in float64."""

    norm_with_context: float
    norm_baseline: float
    norm_difference: float
    """‖with context − baseline‖."""
    cosine: float | None
    """Cosine of the two vectors. Null if one is zero."""


@dataclass(frozen=True)
class Factors(Answer, Generic[Values]):
    """ΔW = outer(input, output), in the stored orientation."""

    input: Values
    """n/‖n‖² of the baseline's mlp_in, [d_model]."""
    output: Values
    """Δn·W, [d_mlp]. It is also an equivalent shift of the bias."""


@dataclass(frozen=True)
class Part(Answer, Generic[Values]):
    """One part of an update. Its input factor is that of the whole update."""

    norm: float
    factors: Factors[Values]


@dataclass(frozen=True)
class Split(Answer, Generic[Values]):
    """The update of baseline `alone` as two parts that add up to it."""

    content: Part[Values]
    """From the query at its position without context to the query with it."""
    position: Part[Values]
    """From the query at position 0 to the query at its position."""


@dataclass(frozen=True)
class Reuse(Answer):
    """The error of an update on another query's last token, at mlp_pre."""

    query: int
    """Index into `probe_queries`."""
    cosine: float | None
    """Cosine of this ΔW and the probe query's own. Null if one is zero or below noise."""
    below_noise: bool
    """True if the probe query's own ΔW is rounding."""
    relative_error: float | None
    """‖patched − with context‖ / ‖with context‖."""
    unpatched_relative_error: float | None
    """The same ratio without a patch."""


@dataclass(frozen=True)
class Update(Answer, Generic[Values]):
    """The update of one layer for one query position."""

    layer: int
    position: QueryIndex
    weight: str
    """Name of the updated weight in the checkpoint."""
    shape: Sequence[int]
    """Shape of that weight as stored: [d_model, d_mlp]."""
    rank: int
    """1, or 0 if the context changes nothing."""
    norm: float
    """‖ΔW‖, Frobenius = spectral, float64."""
    relative_norm: float | None
    """‖ΔW‖_F / ‖W‖_F."""
    spectral_share: float | None
    """‖ΔW‖₂ / ‖W‖₂."""
    mlp_in: Norms
    """After ln_2: the vector that W multiplies. It determines ΔW."""
    resid_mid: Norms
    """Before ln_2: the residual stream. Its difference is Δh."""
    below_noise: bool
    """True if ‖Δn‖ < 32·ε·‖n‖. The update is rounding then."""
    factors: Asked[Factors[Values]] = UNSET
    bias: Asked[Values] = UNSET
    """Δh, added at the block's output, [d_model]."""
    split: Asked[Split[Values]] = UNSET
    reuse: Asked[Sequence[Reuse]] = UNSET
    """One entry per probe query. Absent without probe queries."""


@dataclass(frozen=True)
class JointWeight(Answer, Generic[Values]):
    """One weight's part of a joint update: ΔW = inputᵀ·output."""

    weight: str
    """Name of the weight in the checkpoint."""
    norm: float
    """‖ΔW‖, Frobenius, float64."""
    singular_values: Sequence[float]
    """Largest first. The first is ‖ΔW‖₂."""
    condition: float
    """σ_max/σ_min of the stacked rows that ΔW is solved for."""
    factors: Asked[Factors[Values]] = UNSET
    """[m, d_in] and [m, d_out] for m positions."""


@dataclass(frozen=True)
class JointUpdate(Answer, Generic[Values]):
    """One patch of a layer that is exact at several query positions."""

    layer: int
    positions: Sequence[int]
    """Indices into the query."""
    rank: int
    """The larger numerical rank of the two weights' updates."""
    condition: float
    """The larger condition of the two weights."""
    weights: Sequence[JointWeight[Values]]
    """The MLP's first and second weight."""


@dataclass(frozen=True)
class LikelyToken(Answer):
    """A candidate for the next token."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class NextTokens(Answer):
    """The likeliest tokens after one query position, in each run."""

    position: QueryIndex
    with_context: Sequence[LikelyToken]
    """Likeliest first."""
    baseline: Sequence[LikelyToken]
    """Likeliest first, from the ordinary baseline run without any patch."""
    kl_divergence: float
    """KL(with context ‖ baseline) in nats, over the whole vocabulary."""


@dataclass(frozen=True)
class WeightUpdatesAnswer(PairAnswer, Generic[Values]):
    """One entry per layer and position."""

    updates: Sequence[Update[Values]]
    next_tokens: Asked[Sequence[NextTokens]] = UNSET


@dataclass(frozen=True)
class JointUpdatesAnswer(PairAnswer, Generic[Values]):
    """One entry per layer: the answer with `joint`."""

    updates: Sequence[JointUpdate[Values]]
    next_tokens: Asked[Sequence[NextTokens]] = UNSET
