"""`POST /v1/equivalence-checks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from schemas.common import UNSET, Answer, Asked
from schemas.pairs import SEED_CONTEXT, SEED_QUERY, PairAnswer, PairRequest
from schemas.weight_updates import LikelyToken

Verdict = Literal["holds", "fails", "vacuous"]
Scope = Literal["projection", "block", "model"]
Precision = Literal["float32", "float64"]
Apply = Literal["factored", "materialized"]
"""How W + ΔW is applied: by the factors of ΔW beside W, or as one matrix."""


class EquivalenceChecksRequest(PairRequest):
    """A pair, and how its equivalence is checked."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "context": SEED_CONTEXT,
                    "query": SEED_QUERY,
                    "scope": "projection",
                    "baseline": "alone",
                    "layers": [5],
                },
                {"context": SEED_CONTEXT, "query": SEED_QUERY, "precision": "float64"},
                {"context": SEED_CONTEXT, "query": SEED_QUERY, "scope": "model"},
            ]
        }
    )

    scope: Annotated[
        Scope,
        Field(
            description="The compared vector. `projection`: the output of the MLP's first layer "
            "with its bias. `block`: the block's output. `model`: every block's output and the "
            "logits, in the sequential stream (arXiv 2511.17864)."
        ),
    ] = "block"
    precision: Annotated[
        Literal["model", "float32", "float64"],
        Field(
            description="The dtype of both runs and of the patch. `model`: the resident dtype, or "
            "float32 for a half-precision model."
        ),
    ] = "model"
    tolerance: Annotated[
        float | None,
        Field(gt=0, description="Largest relative error at which a check holds. Null derives it."),
    ] = None
    apply: Annotated[
        Apply,
        Field(description="`materialized` multiplies by W + ΔW. `factored` adds (n·a) b to n·W."),
    ] = "materialized"
    joint: Annotated[
        bool,
        Field(
            description="Check one patch of both MLP weights for all positions (two or more). "
            "Scopes `projection` and `block`, stream `free`."
        ),
    ] = False
    controls: Annotated[
        bool, Field(description="Whether to run the controls, whose errors must be far larger.")
    ] = True


@dataclass(frozen=True)
class Check(Answer):
    """The check of one layer at one query position."""

    layer: int
    position: Annotated[int, Field(description="Index into the query.")]
    magnitude: Annotated[
        float, Field(description="‖expected‖ of the compared vector in the run with context.")
    ]
    error: Annotated[float, Field(description="‖actual − expected‖.")]
    relative_error: Annotated[float | None, Field(description="error / magnitude.")]
    max_abs_error: float
    tolerance: Annotated[
        float,
        Field(description="gate × max(1, (‖h‖ + ‖h_C‖) / ‖expected‖), or the requested one."),
    ]
    unpatched_relative_error: Annotated[
        float | None,
        Field(
            description="Relative error without the checked patch: of the baseline run; in the "
            "sequential stream, of this layer without its own patch; in scope `model`, of the run "
            "without any patch."
        ),
    ]
    improvement: Annotated[
        float | None,
        Field(description="Unpatched / patched error, the latter at least the dtype's ε."),
    ]
    vacuous: Annotated[
        bool,
        Field(
            description="True if the unpatched error is at most 10 tolerances, so that the check "
            "cannot tell."
        ),
    ]
    verdict: Verdict
    holds: Annotated[bool, Field(description="Whether the verdict is `holds`.")]
    controls: Annotated[
        Asked[Mapping[str, float | None]],
        Field(
            description="Relative errors with another patch, which must be far larger. "
            "`without_bias`: ΔW alone. `without_weight`: Δh alone, or ΔW_out alone of a joint "
            "patch. `random_update`: a random output factor of equal norm. `shuffled_context`: the "
            "update of the context in another order. `free_stream_patches` (scope `model`): all "
            "updates of the free stream at once."
        ),
    ] = UNSET
    control_reasons: Annotated[
        Asked[Mapping[str, str]], Field(description="Reason why a control that is null is missing.")
    ] = UNSET
    bias_only_relative_error: Annotated[
        Asked[float | None],
        Field(
            description="Relative error with Δh added to the attention output and no ΔW. It is "
            "exact too, so a check that holds does not show that the MLP learns. Absent in scope "
            "`model` and without controls."
        ),
    ] = UNSET


@dataclass(frozen=True)
class TopTokens(Answer):
    """The likeliest next tokens of three runs."""

    with_context: Sequence[LikelyToken]
    patched: Sequence[LikelyToken]
    without_context: Sequence[LikelyToken]


@dataclass(frozen=True)
class LogitsCheck(Answer):
    """The check of the logits after one query position, with every block patched."""

    position: Annotated[int, Field(description="Index into the query.")]
    relative_error: Annotated[
        float | None, Field(description="‖patched − with context‖ / ‖with context‖.")
    ]
    max_abs_error: float
    tolerance: Annotated[
        float, Field(description="gate × the largest factor of any block's tolerance.")
    ]
    unpatched_relative_error: Annotated[
        float | None, Field(description="Relative error of the ordinary baseline run.")
    ]
    kl_divergence: Annotated[float, Field(description="KL(with context ‖ patched) in nats.")]
    kl_tolerance: Annotated[float, Field(description="Largest divergence at which it holds.")]
    unpatched_kl_divergence: Annotated[float, Field(description="KL(with context ‖ baseline).")]
    same_top_token: Annotated[
        bool, Field(description="Whether both runs have the same likeliest token, as it must be.")
    ]
    verdict: Verdict
    holds: Annotated[bool, Field(description="Whether the verdict is `holds`.")]
    top_tokens: TopTokens
    controls: Asked[Mapping[str, float | None]] = UNSET
    control_reasons: Asked[Mapping[str, str]] = UNSET


@dataclass(frozen=True)
class EquivalenceChecksAnswer(PairAnswer):
    """One entry per layer and position. Scope `model` adds the logits of each position."""

    holds: Annotated[bool, Field(description="Whether every check holds.")]
    verdict: Annotated[
        Verdict, Field(description="`fails` if a check fails, else `vacuous` if one is vacuous.")
    ]
    scope: Scope
    precision: Precision
    apply: Apply
    joint: bool
    checks: Sequence[Check]
    logits: Asked[Sequence[LogitsCheck]] = UNSET
