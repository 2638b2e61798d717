"""`GET /v1/model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from schemas.activations import HookPoint
from schemas.common import UNSET, Answer, Asked, ModelSummary
from schemas.equivalence_checks import Verdict


@dataclass(frozen=True)
class HookPointInfo(Answer):
    """The place of a hook point in the checkpoint, and its name elsewhere."""

    name: HookPoint
    module: Annotated[str, Field(description="Module path in the checkpoint, with {layer}.")]
    side: Annotated[Literal["input", "output"], Field(description="Input or output of the module.")]
    width: Annotated[int, Field(description="Length of the vector.")]
    transformer_lens: Annotated[
        str | None,
        Field(description="Name in TransformerLens, with {layer}. Null if it has no such point."),
    ]
    note: Annotated[Asked[str], Field(description="Differences from similar names there.")] = UNSET


@dataclass(frozen=True)
class Limits(Answer):
    """Limits of one request. The service enforces exactly these numbers."""

    max_body_bytes: int
    max_prompts: int
    max_tokens_per_request: Annotated[
        int,
        Field(
            description="Rows (tokens at positions) that the runs of one request compute. Shared "
            "beginnings count once."
        ),
    ]
    max_response_bytes: int
    n_positions: Annotated[int, Field(description="Tokens of one prompt, context and query.")]
    queue_size: Annotated[int, Field(description="Requests that may wait.")]
    deadline_seconds: Annotated[float, Field(description="Seconds to wait and to compute.")]


@dataclass(frozen=True)
class Versions(Answer):
    """Versions of the software that computes."""

    service: str
    torch: str
    transformers: str


@dataclass(frozen=True)
class SelfCheck(Answer):
    """The block check of every layer on a fixed prompt, in float32, made at start."""

    when: Annotated[str, Field(description="UTC, ISO 8601.")]
    verdict: Annotated[
        Verdict, Field(description="`vacuous` only if no layer could tell, `fails` if one failed.")
    ]
    layers: Annotated[int, Field(description="Number of checked layers.")]
    worst_relative_error: Annotated[
        float | None, Field(description="Largest error of a patched run. Null if not finite.")
    ]
    least_unpatched_relative_error: Annotated[
        float | None, Field(description="Smallest error of an unpatched run. Null if not finite.")
    ]
    reason: Annotated[Asked[str], Field(description="Reason of a failure, if known.")] = UNSET


@dataclass(frozen=True)
class ModelAnswer(Answer):
    """The resident model, its hook points, and the limits of a request."""

    model: ModelSummary
    architecture: str
    n_layers: int
    d_model: int
    d_mlp: int
    n_positions: int
    vocab_size: int
    tokenizer_digest: Annotated[
        str, Field(description="SHA-256 of the tokenizer, as it turns texts into ids.")
    ]
    fan_in_fan_out: Annotated[
        bool, Field(description="Whether weights are stored as (d_in, d_out), as ΔW is given.")
    ]
    hook_points: Sequence[HookPointInfo]
    limits: Limits
    versions: Versions
    self_check: SelfCheck
