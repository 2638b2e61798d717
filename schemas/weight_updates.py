"""`POST /v1/weight-updates`."""

from __future__ import annotations

from typing import Annotated, Generic, Literal

from pydantic import ConfigDict, Field

from schemas.common import Answer, Encoding, Text, Values
from schemas.pairs import SEED_CONTEXT, SEED_QUERY, PairAnswer, PairRequest

Include = Literal["factors", "bias", "next_tokens", "split"]


class WeightUpdatesRequest(PairRequest):
    """Which updates, and how much of them."""

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
            description="any of `factors`, `bias`, `next_tokens`, `split` (baseline `alone`, "
            "stream `free`); [] gives the norms alone and is cheap",
        ),
    ] = ["factors"]
    joint: Annotated[
        bool,
        Field(
            description="one patch of both MLP weights that is exact at all positions (two or "
            "more), stream `free`; the answer has an entry a layer"
        ),
    ] = False
    probe_queries: Annotated[
        list[Text],
        Field(
            description="further queries behind the same context and baseline; each entry says "
            "how its update does on each one's last token"
        ),
    ] = []
    encoding: Encoding = "json"


class Norms(Answer):
    """One activation in both runs, in float64."""

    norm_with_context: float
    norm_baseline: float
    norm_difference: Annotated[float, Field(description="‖with context − baseline‖")]
    cosine: Annotated[float | None, Field(description="null where one of them is zero")]


class Factors(Answer, Generic[Values]):
    """ΔW = outer(input, output) in the stored orientation."""

    input: Annotated[Values, Field(description="n/‖n‖² of the baseline's mlp_in, [d_model]")]
    output: Annotated[Values, Field(description="Δn·W, [d_mlp]; also an equivalent shift of b_in")]


class Part(Answer, Generic[Values]):
    """One part of an update, on the base of the whole."""

    norm: float
    factors: Factors[Values]


class Split(Answer, Generic[Values]):
    """The update of baseline `alone` as two parts that add up to it."""

    content: Annotated[
        Part[Values], Field(description="from the query at its place to with context")
    ]
    position: Annotated[
        Part[Values], Field(description="from the query alone to the query at its place")
    ]


class Reuse(Answer):
    """The update on another query's last token, at mlp_pre."""

    query: Annotated[int, Field(description="index into `probe_queries`")]
    cosine: Annotated[
        float | None,
        Field(description="of this ΔW and that query's own; null where one is zero or noise"),
    ]
    below_noise: Annotated[bool, Field(description="that query's own ΔW is rounding")]
    relative_error: Annotated[
        float | None, Field(description="of the patched run against the run with context")
    ]
    unpatched_relative_error: Annotated[float | None, Field(description="without a patch")]


class Update(Answer, Generic[Values]):
    """The update of one layer for one query position."""

    layer: int
    position: Annotated[int, Field(description="index into the query")]
    weight: Annotated[str, Field(description="the updated weight's name in the checkpoint")]
    shape: Annotated[list[int], Field(description="of that weight as stored: [d_model, d_mlp]")]
    rank: Annotated[int, Field(description="1; 0 where the context changes nothing")]
    norm: Annotated[float, Field(description="‖ΔW‖, Frobenius = spectral, float64")]
    relative_norm: Annotated[float | None, Field(description="‖ΔW‖_F / ‖W‖_F")]
    spectral_share: Annotated[float | None, Field(description="‖ΔW‖₂ / ‖W‖₂")]
    mlp_in: Annotated[Norms, Field(description="after ln_2: what W multiplies; gives ΔW")]
    resid_mid: Annotated[Norms, Field(description="before ln_2: the stream; its difference is Δh")]
    below_noise: Annotated[
        bool, Field(description="‖Δn‖ < 32·ε·‖n‖: the update is rounding, not context")
    ]
    factors: Factors[Values] | None = None
    bias: Annotated[
        Values | None, Field(description="Δh, added at the block's output, [d_model]")
    ] = None
    split: Split[Values] | None = None
    reuse: Annotated[
        list[Reuse] | None, Field(description="one entry a probe query, where there are any")
    ] = None


class JointWeight(Answer, Generic[Values]):
    """One weight's part of a joint update: ΔW = inputᵀ·output."""

    weight: Annotated[str, Field(description="its name in the checkpoint")]
    norm: Annotated[float, Field(description="‖ΔW‖, Frobenius, float64")]
    singular_values: Annotated[list[float], Field(description="largest first; the first is ‖ΔW‖₂")]
    condition: Annotated[float, Field(description="σ_max/σ_min of the rows it was solved for")]
    factors: Annotated[
        Factors[Values] | None, Field(description="[m, d_in] and [m, d_out] for m positions")
    ] = None


class JointUpdate(Answer, Generic[Values]):
    """One patch of a layer, exact at several query positions."""

    layer: int
    positions: Annotated[list[int], Field(description="indices into the query")]
    rank: int
    condition: Annotated[float, Field(description="the larger of the two weights'")]
    weights: Annotated[
        list[JointWeight[Values]], Field(description="the MLP's first and second weight")
    ]


class LikelyToken(Answer):
    """A token that may come next."""

    id: int
    text: str
    probability: float


class NextTokens(Answer):
    """The likeliest tokens after one query position."""

    position: Annotated[int, Field(description="index into the query")]
    with_context: list[LikelyToken]
    baseline: list[LikelyToken]
    kl_divergence: Annotated[
        float, Field(description="KL(with context ‖ baseline) in nats, over the whole vocabulary")
    ]


class WeightUpdatesAnswer(PairAnswer, Generic[Values]):
    """One entry a layer and position; with `joint` one entry a layer."""

    updates: list[Update[Values]] | list[JointUpdate[Values]]
    next_tokens: list[NextTokens] | None = None
