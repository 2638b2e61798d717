"""`POST /v1/weight-updates`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal

from pydantic import ConfigDict, Field

from schemas.common import UNSET, Answer, Asked, Encoding, Text, Values
from schemas.pairs import SEED_CONTEXT, SEED_QUERY, PairAnswer, PairRequest

Include = Literal["factors", "bias", "next_tokens", "split"]


class WeightUpdatesRequest(PairRequest):
    """A pair, and the parts of its updates to return."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"context": SEED_CONTEXT, "query": SEED_QUERY, "include": []},
                {
                    "context": SEED_CONTEXT,
                    "query": SEED_QUERY,
                    "baseline": "anchored",
                    "layers": [5],
                    "include": ["factors", "bias", "next_tokens"],
                    "encoding": "base64",
                },
                {
                    "context": SEED_CONTEXT,
                    "query": SEED_QUERY,
                    "include": [],
                    "probe_queries": [" Paris", " is"],
                },
            ]
        }
    )

    include: Annotated[
        list[Include],
        Field(
            max_length=4,
            description="Any of `factors`, `bias`, `next_tokens`, `split`. `split` needs baseline "
            "`alone` and stream `free`. [] returns the norms alone and is cheap.",
        ),
    ] = ["factors"]
    joint: Annotated[
        bool,
        Field(
            description="One patch of both MLP weights that is exact at all positions (two or "
            "more), stream `free`. The answer has one entry per layer."
        ),
    ] = False
    probe_queries: Annotated[
        list[Text],
        Field(
            description="Further queries after the same context and baseline. Each entry reports "
            "the error of its update on the last token of every probe query."
        ),
    ] = []
    encoding: Encoding = "json"


@dataclass(frozen=True)
class Norms(Answer):
    """One activation in both runs, in float64."""

    norm_with_context: float
    norm_baseline: float
    norm_difference: Annotated[float, Field(description="‖with context − baseline‖.")]
    cosine: Annotated[
        float | None, Field(description="Cosine of the two vectors. Null if one is zero.")
    ]


@dataclass(frozen=True)
class Factors(Answer, Generic[Values]):
    """ΔW = outer(input, output), in the stored orientation."""

    input: Annotated[Values, Field(description="n/‖n‖² of the baseline's mlp_in, [d_model].")]
    output: Annotated[
        Values, Field(description="Δn·W, [d_mlp]. It is also an equivalent shift of the bias.")
    ]


@dataclass(frozen=True)
class Part(Answer, Generic[Values]):
    """One part of an update. Its input factor is that of the whole update."""

    norm: float
    factors: Factors[Values]


@dataclass(frozen=True)
class Split(Answer, Generic[Values]):
    """The update of baseline `alone` as two parts that add up to it."""

    content: Annotated[
        Part[Values],
        Field(description="From the query at its position without context to the query with it."),
    ]
    position: Annotated[
        Part[Values],
        Field(description="From the query at position 0 to the query at its position."),
    ]


@dataclass(frozen=True)
class Reuse(Answer):
    """The error of an update on another query's last token, at mlp_pre."""

    query: Annotated[int, Field(description="Index into `probe_queries`.")]
    cosine: Annotated[
        float | None,
        Field(
            description="Cosine of this ΔW and the probe query's own. Null if one is zero or below "
            "noise."
        ),
    ]
    below_noise: Annotated[bool, Field(description="True if the probe query's own ΔW is rounding.")]
    relative_error: Annotated[
        float | None, Field(description="‖patched − with context‖ / ‖with context‖.")
    ]
    unpatched_relative_error: Annotated[
        float | None, Field(description="The same ratio without a patch.")
    ]


@dataclass(frozen=True)
class Update(Answer, Generic[Values]):
    """The update of one layer for one query position."""

    layer: int
    position: Annotated[int, Field(description="Index into the query.")]
    weight: Annotated[str, Field(description="Name of the updated weight in the checkpoint.")]
    shape: Annotated[
        Sequence[int], Field(description="Shape of that weight as stored: [d_model, d_mlp].")
    ]
    rank: Annotated[int, Field(description="1, or 0 if the context changes nothing.")]
    norm: Annotated[float, Field(description="‖ΔW‖, Frobenius = spectral, float64.")]
    relative_norm: Annotated[float | None, Field(description="‖ΔW‖_F / ‖W‖_F.")]
    spectral_share: Annotated[float | None, Field(description="‖ΔW‖₂ / ‖W‖₂.")]
    mlp_in: Annotated[
        Norms, Field(description="After ln_2: the vector that W multiplies. It determines ΔW.")
    ]
    resid_mid: Annotated[
        Norms, Field(description="Before ln_2: the residual stream. Its difference is Δh.")
    ]
    below_noise: Annotated[
        bool,
        Field(description="True if ‖Δn‖ < 32·ε·‖n‖. The update is rounding then."),
    ]
    factors: Asked[Factors[Values]] = UNSET
    bias: Annotated[
        Asked[Values], Field(description="Δh, added at the block's output, [d_model].")
    ] = UNSET
    split: Asked[Split[Values]] = UNSET
    reuse: Annotated[
        Asked[Sequence[Reuse]],
        Field(description="One entry per probe query. Absent without probe queries."),
    ] = UNSET


@dataclass(frozen=True)
class JointWeight(Answer, Generic[Values]):
    """One weight's part of a joint update: ΔW = inputᵀ·output."""

    weight: Annotated[str, Field(description="Name of the weight in the checkpoint.")]
    norm: Annotated[float, Field(description="‖ΔW‖, Frobenius, float64.")]
    singular_values: Annotated[
        Sequence[float], Field(description="Largest first. The first is ‖ΔW‖₂.")
    ]
    condition: Annotated[
        float, Field(description="σ_max/σ_min of the stacked rows that ΔW is solved for.")
    ]
    factors: Annotated[
        Asked[Factors[Values]], Field(description="[m, d_in] and [m, d_out] for m positions.")
    ] = UNSET


@dataclass(frozen=True)
class JointUpdate(Answer, Generic[Values]):
    """One patch of a layer that is exact at several query positions."""

    layer: int
    positions: Annotated[Sequence[int], Field(description="Indices into the query.")]
    rank: Annotated[
        int, Field(description="The larger numerical rank of the two weights' updates.")
    ]
    condition: Annotated[float, Field(description="The larger condition of the two weights.")]
    weights: Annotated[
        Sequence[JointWeight[Values]], Field(description="The MLP's first and second weight.")
    ]


@dataclass(frozen=True)
class LikelyToken(Answer):
    """A candidate for the next token."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class NextTokens(Answer):
    """The likeliest tokens after one query position, in each run."""

    position: Annotated[int, Field(description="Index into the query.")]
    with_context: Annotated[Sequence[LikelyToken], Field(description="Likeliest first.")]
    baseline: Annotated[
        Sequence[LikelyToken],
        Field(description="Likeliest first, from the ordinary baseline run without any patch."),
    ]
    kl_divergence: Annotated[
        float, Field(description="KL(with context ‖ baseline) in nats, over the whole vocabulary.")
    ]


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
