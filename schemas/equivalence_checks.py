"""`POST /v1/equivalence-checks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from schemas.common import UNSET, Answer, Asked, Request, with_examples
from schemas.pairs import SEED, Form, PairAnswer, PairRequest, QueryIndex
from schemas.weight_updates import LikelyToken

Verdict = Literal["holds", "fails", "vacuous"]
Scope = Literal["projection", "block", "model"]
Precision = Literal["float32", "float64"]
Apply = Literal["factored", "materialized"]
"""How W + ΔW is applied: by the factors of ΔW beside W, or as one matrix."""


class StoredPatch(Request):
    """The patch of an adapter."""

    adapter: Annotated[str, Field(max_length=128)]
    """Id of a token adapter."""


class EquivalenceChecksRequest(PairRequest):
    """A pair, and how its equivalence is checked."""

    model_config = with_examples(
        {**SEED, "scope": "projection", "baseline": "alone", "layers": [5]},
        {**SEED, "precision": "float64"},
        {**SEED, "scope": "model"},
    )

    scope: Scope = "block"
    """The compared vector. `projection`: the output of the MLP's first layer with its bias.
    `block`: the block's output. `model`: every block's output and the logits, in the sequential
    stream (arXiv 2511.17864)."""
    form: Form = "bias"
    """The carrier of Δh in the patch. `bias`: a bias at the block's output. `weights`: the MLP's
    second weight, and the gain of the norm after the MLP if there is one. `weights` needs scope
    `block` or `model`."""
    precision: Literal["model", "float32", "float64"] = "model"
    """The dtype of both runs and of the patch. `model`: the resident dtype, or float32 for a
    half-precision model."""
    tolerance: Annotated[float | None, Field(gt=0)] = None
    """Largest relative error at which a check holds. By default it is derived from the scope's
    gate."""
    patch: StoredPatch | None = None
    """The patch to check in scope `model`: that of a token adapter. The request must have the
    adapter's context, query and baseline. Null forms the patch anew for each position."""
    apply: Apply = "materialized"
    """`materialized` multiplies by W + ΔW. `factored` adds (n·a) b to n·W."""
    controls: bool = True
    """Whether to run the controls, whose errors must be far larger."""


@dataclass(frozen=True)
class Check(Answer):
    """The check of one layer at one query position."""

    layer: int
    position: QueryIndex
    magnitude: float
    """‖expected‖ of the compared vector in the run with context."""
    error: float
    """‖actual − expected‖."""
    relative_error: float | None
    """error / magnitude."""
    max_abs_error: float
    tolerance: float
    """gate × max(1, (‖h‖ + ‖h_C‖) / ‖expected‖), or the requested one."""
    unpatched_relative_error: float | None
    """Relative error without the checked patch: of the baseline run; in the sequential stream, of
    this layer without its own patch; in scope `model`, of the run without any patch."""
    improvement: float | None
    """Unpatched / patched error, the latter at least the dtype's ε."""
    vacuous: bool
    """True if the unpatched error is at most 10 tolerances, so that the check cannot tell."""
    verdict: Verdict
    holds: bool
    """Whether the verdict is `holds`."""
    vacuous_reason: Asked[str] = UNSET
    """Reason why the check is vacuous by theorem, whatever the numbers. Present only if it is: for
    example, for a projection of a parallel block in the sequential stream, where ΔW is 0."""
    controls: Asked[Mapping[str, float | None]] = UNSET
    """Relative errors with another patch, which must be far larger. `without_bias`: ΔW alone.
    `without_weight`: Δh alone. `random_update`: a random output factor of equal norm.
    `shuffled_context`: the update of the context in another order. `free_stream_patches` (scope
    `model`): all updates of the free stream at once."""
    control_reasons: Asked[Mapping[str, str]] = UNSET
    """Reason why a control that is null is missing."""
    bias_only_relative_error: Asked[float | None] = UNSET
    """Relative error with Δh added to the attention output and no ΔW. It is exact too, so a check
    that holds does not show that the MLP learns. Null for parallel blocks, whose MLP does not read
    the attention output. Absent in scope `model` and without controls."""


@dataclass(frozen=True)
class TopTokens(Answer):
    """The likeliest next tokens of three runs."""

    with_context: Sequence[LikelyToken]
    patched: Sequence[LikelyToken]
    without_context: Sequence[LikelyToken]


@dataclass(frozen=True)
class LogitsCheck(Answer):
    """The check of the logits after one query position, with every block patched."""

    position: QueryIndex
    relative_error: float | None
    """‖patched − with context‖ / ‖with context‖."""
    max_abs_error: float
    tolerance: float
    """gate × the largest factor of any block's tolerance."""
    unpatched_relative_error: float | None
    """Relative error of the ordinary baseline run."""
    kl_divergence: float
    """KL(with context ‖ patched) in nats."""
    kl_tolerance: float
    """Largest divergence at which it holds."""
    unpatched_kl_divergence: float
    """KL(with context ‖ baseline)."""
    same_top_token: bool
    """Whether both runs have the same likeliest token, as it must be."""
    verdict: Verdict
    holds: bool
    """Whether the verdict is `holds`."""
    top_tokens: TopTokens
    controls: Asked[Mapping[str, float | None]] = UNSET
    control_reasons: Asked[Mapping[str, str]] = UNSET


@dataclass(frozen=True)
class EquivalenceChecksAnswer(PairAnswer):
    """One entry per layer and position. Scope `model` adds the logits of each position."""

    holds: bool
    """Whether every check holds."""
    verdict: Verdict
    """`fails` if a check fails, else `vacuous` if one is vacuous."""
    scope: Scope
    precision: Precision
    apply: Apply
    form: Form
    checks: Sequence[Check]
    logits: Asked[Sequence[LogitsCheck]] = UNSET
    adapter: Asked[str] = UNSET
    """Id of the adapter whose patch was checked."""
