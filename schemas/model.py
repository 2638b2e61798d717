"""`GET /v1/model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from schemas.activations import HookPoint
from schemas.common import UNSET, Answer, Asked, ModelSummary
from schemas.equivalence_checks import Verdict


@dataclass(frozen=True)
class HookPointInfo(Answer):
    """The place of a hook point in the checkpoint, and its name elsewhere."""

    name: HookPoint
    module: str | None
    """Module path in the checkpoint, with {layer}. Null if no module holds the vector."""
    side: Literal["input", "output"] | None
    """Input or output of the module. Null without a module."""
    width: int
    """Length of the vector."""
    transformer_lens: str | None
    """Name in TransformerLens, with {layer}. Null if it has no such point."""
    note: Asked[str] = UNSET
    """Differences from similar names there."""


@dataclass(frozen=True)
class Limits(Answer):
    """Limits of one request. The service enforces exactly these numbers."""

    max_body_bytes: int
    """Bytes of a body, or of one line of it (NDJSON)."""
    max_lines: int
    """Lines of an NDJSON request."""
    max_ndjson_bytes: int
    """Bytes of all lines of an NDJSON request."""
    max_prompts: int
    max_tokens_per_request: int
    """Rows (tokens at positions) that the runs of one request compute. Shared beginnings count
    once."""
    max_response_bytes: int
    n_positions: int
    """Tokens of one prompt, context and query."""
    queue_size: int
    """Requests that may wait."""
    deadline_seconds: float
    """Seconds to wait and to compute."""


@dataclass(frozen=True)
class Versions(Answer):
    """Versions of the software that computes."""

    service: str
    torch: str
    transformers: str


@dataclass(frozen=True)
class SelfCheck(Answer):
    """The block check of every layer on a fixed prompt, in float32, made at start."""

    when: str
    """UTC, ISO 8601."""
    verdict: Verdict
    """`vacuous` only if no layer could tell, `fails` if one failed."""
    layers: int
    """Number of checked layers."""
    worst_relative_error: float | None
    """Largest error of a patched run. Null if not finite."""
    least_unpatched_relative_error: float | None
    """Smallest error of an unpatched run. Null if not finite."""
    reason: Asked[str] = UNSET
    """Reason of a failure, if known."""


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
    config_digest: str
    """SHA-256 of the configuration, without names and versions."""
    tokenizer_digest: str
    """SHA-256 of the tokenizer, as it turns texts into ids."""
    fan_in_fan_out: bool
    """Whether weights are stored as [d_in, d_out], the orientation of outer(input, output)."""
    first_weights: Sequence[str]
    """Names of the MLP's first weights, with {layer}. A gated MLP has two, gate and up."""
    positions: Literal["absolute", "relative"]
    """Whether a token's position is part of its embedding (`absolute`), or acts only in attention
    (`relative`)."""
    parallel: bool
    """Whether attention and MLP read the same residual stream, so that the MLP does not read the
    attention output."""
    post_norms: bool
    """Whether a norm follows the MLP before the residual stream."""
    anchor: str | None
    """Text of the token that the baseline `anchored` puts first. Null if there is none."""
    hook_points: Sequence[HookPointInfo]
    limits: Limits
    versions: Versions
    self_check: SelfCheck
