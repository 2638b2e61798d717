"""`POST /v1/equivalence-checks`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from schemas.common import Answer
from schemas.pairs import SEED_CONTEXT, SEED_QUERY, PairAnswer, PairRequest
from schemas.weight_updates import LikelyToken

Verdict = Literal["holds", "fails", "vacuous"]


class EquivalenceChecksRequest(PairRequest):
    """What is checked, how exactly, and against what."""

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
        Literal["projection", "block", "model"],
        Field(
            description="what is compared: `projection`, the MLP's first layer with its bias; "
            "`block`, the block's output; `model`, every block's output and the logits, in the "
            "sequential stream"
        ),
    ] = "block"
    precision: Annotated[
        Literal["model", "float32", "float64"],
        Field(
            description="what both passes and the patch are computed in; `model` is the resident "
            "dtype, for a half-precision model float32"
        ),
    ] = "model"
    tolerance: Annotated[
        float | None,
        Field(gt=0, description="relative error up to which a check holds; null derives it"),
    ] = None
    apply: Annotated[
        Literal["factored", "materialized"],
        Field(description="`materialized` multiplies by W + ΔW; `factored` adds (n·a) b to n·W"),
    ] = "materialized"
    joint: Annotated[
        bool,
        Field(
            description="check one patch of both MLP weights for all positions (two or more); "
            "scopes `projection` and `block`, stream `free`"
        ),
    ] = False
    controls: Annotated[
        bool, Field(description="whether to run the controls, which must be far worse")
    ] = True


class Check(Answer):
    """One layer at one query position."""

    layer: int
    position: Annotated[int, Field(description="index into the query")]
    magnitude: Annotated[float, Field(description="‖expected‖, as the run with context has it")]
    error: Annotated[float, Field(description="‖actual − expected‖")]
    relative_error: Annotated[float | None, Field(description="error / magnitude")]
    max_abs_error: float
    tolerance: Annotated[
        float, Field(description="gate × max(1, (‖h‖ + ‖h_C‖) / ‖expected‖), or the one asked for")
    ]
    unpatched_relative_error: Annotated[
        float | None,
        Field(
            description="without the patch that is checked: of the baseline run, in the "
            "sequential stream of this layer alone, in scope `model` of the run with no patch at "
            "all"
        ),
    ]
    improvement: Annotated[
        float | None,
        Field(description="unpatched / patched error, the latter at least the dtype's ε"),
    ]
    vacuous: Annotated[
        bool, Field(description="the unpatched error is at most 10 tolerances: nothing can be told")
    ]
    verdict: Verdict
    holds: Annotated[bool, Field(description="whether the verdict is `holds`")]
    controls: Annotated[
        dict[str, float | None] | None,
        Field(
            description="relative errors with another patch: `without_bias` (ΔW alone), "
            "`without_weight` (Δh alone; of a joint patch ΔW_out alone), `random_update` (a "
            "random output factor of equal norm), `shuffled_context` (the update of the context "
            "in other order); these must be far worse. `bias_only_at_attention` (Δh at "
            "attention's output, no ΔW) is exact too. In scope `model`: `free_stream_patches`, "
            "all updates of the free stream at once"
        ),
    ] = None
    control_reasons: Annotated[
        dict[str, str] | None, Field(description="why a control that is null could not be formed")
    ] = None


class TopTokens(Answer):
    """The likeliest next tokens of three runs."""

    with_context: list[LikelyToken]
    patched: list[LikelyToken]
    without_context: list[LikelyToken]


class LogitsCheck(Answer):
    """The logits after one query position, with every block patched."""

    position: Annotated[int, Field(description="index into the query")]
    relative_error: Annotated[
        float | None, Field(description="‖patched − with context‖ / ‖with context‖")
    ]
    max_abs_error: float
    tolerance: Annotated[
        float, Field(description="gate × the largest factor of any block's tolerance")
    ]
    unpatched_relative_error: Annotated[
        float | None, Field(description="of the ordinary baseline run")
    ]
    kl_divergence: Annotated[float, Field(description="KL(with context ‖ patched) in nats")]
    kl_tolerance: float
    unpatched_kl_divergence: Annotated[float, Field(description="KL(with context ‖ baseline)")]
    same_top_token: bool
    verdict: Verdict
    holds: Annotated[bool, Field(description="whether the verdict is `holds`")]
    top_tokens: TopTokens
    controls: dict[str, float | None] | None = None
    control_reasons: dict[str, str] | None = None


class EquivalenceChecksAnswer(PairAnswer):
    """One entry a layer and position; in scope `model` the logits of each position too."""

    holds: Annotated[bool, Field(description="whether every check holds")]
    verdict: Annotated[Verdict, Field(description="the worst of all")]
    scope: Literal["projection", "block", "model"]
    precision: Literal["float32", "float64"]
    apply: Literal["factored", "materialized"]
    joint: bool
    checks: list[Check]
    logits: list[LogitsCheck] | None = None
