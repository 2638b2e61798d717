"""`POST /v1/weight-updates`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal

from pydantic import Field

from schemas.common import UNSET, Answer, Asked, Encoding, Text, Values, with_examples
from schemas.pairs import SEED, Form, PairAnswer, PairRequest, QueryIndex

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
    """Any of `factors`, `bias`, `next_tokens`, `split`. `factors` gives `input` and the `output` of
    each weight; `bias` gives the carrier of Δh. `split` needs baseline `alone` and stream `free`.
    [] returns the norms alone and is cheap."""
    form: Form = "bias"
    """The carrier of Δh. `bias`: a bias at the block's output. `weights`: the MLP's second weight,
    as `w_out` in place of `bias`, and the `gain` of the norm after the MLP if there is one."""
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
class FirstWeightUpdate(Answer, Generic[Values]):
    """ΔW of one first weight of the MLP: outer(input, output), transposed if the model stores its
    weights as [d_out, d_in]."""

    name: str
    """Name of the weight in the checkpoint."""
    shape: Sequence[int]
    """Shape of the weight as stored."""
    norm: float
    """‖ΔW‖ of this weight, Frobenius = spectral, float64."""
    relative_norm: float | None
    """‖ΔW‖_F / ‖W‖_F of this weight."""
    spectral_share: float | None
    """‖ΔW‖₂ / ‖W‖₂ of this weight."""
    output: Asked[Values] = UNSET
    """Δn·W, [d_mlp]. It is also an equivalent shift of the weight's bias."""


@dataclass(frozen=True)
class Bias(Answer, Generic[Values]):
    """Δh, added at the block's output."""

    values: Values
    """Δh, [d_model]."""
    parameter: str | None
    """Name of the parameter that can hold Δh. Null if the checkpoint has none."""


@dataclass(frozen=True)
class SecondWeightUpdate(Answer, Generic[Values]):
    """ΔW of the MLP's second weight: outer(input, output), transposed if the model stores its
    weights as [d_out, d_in]. It carries Δh."""

    name: str
    """Name of the weight in the checkpoint."""
    input: Values
    """φ/‖φ‖², where φ is mlp_act with context, [d_mlp]."""
    output: Values
    """The change of φ·W, [d_model]. Without a norm after the MLP it is Δh."""
    norm: float
    """‖ΔW‖, Frobenius = spectral, float64."""
    relative_norm: float | None
    """‖ΔW‖_F / ‖W‖_F."""


@dataclass(frozen=True)
class Gain(Answer, Generic[Values]):
    """The changed gain of the norm after the MLP."""

    name: str
    """Name of the gain in the checkpoint."""
    values: Values
    """The new gain as the norm multiplies by it, [d_model]. Gemma's checkpoints store this minus
    1."""
    lifted: Sequence[int]
    """Indices of the entries that change by more than the common factor, because the old gain is
    zero or too small to produce the required output."""
    norm: float
    """‖new gain − old gain‖, float64."""
    relative_norm: float | None
    """‖new gain − old gain‖ / ‖old gain‖."""


@dataclass(frozen=True)
class Part(Answer, Generic[Values]):
    """One part of an update."""

    norm: float
    """Norm of the part of all first weights together."""
    input: Values
    """The input factor of the whole update, [d_model]."""
    outputs: Sequence[Values]
    """The output factor of each first weight, [d_mlp], in the order of `weights`."""


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
    rank: int
    """1, or 0 if the context changes nothing."""
    norm: float
    """‖ΔW‖ of all first weights together, Frobenius = spectral, float64. Its square is the sum of
    the squares of the weights' norms."""
    below_noise: bool
    """True if ‖Δn‖ < 64·ε·‖n‖, so that the update is rounding."""
    weights: Sequence[FirstWeightUpdate[Values]]
    """One entry per first weight of the MLP. A gated MLP has two, the gate and the up
    projection."""
    mlp_in: Norms
    """The MLP's input after its norm: the vector that the first weights multiply. It determines
    ΔW."""
    resid_mid: Norms
    """The residual stream after attention. Its difference is Δh."""
    input: Asked[Values] = UNSET
    """n/‖n‖², where n is the baseline's mlp_in, [d_model]: the input factor of every first weight.
    Present with `factors`."""
    bias: Asked[Bias[Values]] = UNSET
    """Δh in form `bias`."""
    w_out: Asked[SecondWeightUpdate[Values]] = UNSET
    """The carrier of Δh in form `weights`. Present with `bias`."""
    gain: Asked[Gain[Values]] = UNSET
    """The gain that changes with `w_out`. Present if a norm follows the MLP."""
    split: Asked[Split[Values]] = UNSET
    reuse: Asked[Sequence[Reuse]] = UNSET
    """One entry per probe query. Absent without probe queries."""


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

    form: Form
    updates: Sequence[Update[Values]]
    next_tokens: Asked[Sequence[NextTokens]] = UNSET
