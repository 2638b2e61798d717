"""`GET /v1/model`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.activations import HookPoint
from schemas.common import Answer, ModelSummary


class HookPointInfo(Answer):
    """Where a hook point is, and what it is called elsewhere."""

    name: HookPoint
    module: Annotated[str, Field(description="its module in the checkpoint, with {layer}")]
    side: Annotated[Literal["input", "output"], Field(description="of that module")]
    width: int
    transformer_lens: Annotated[
        str | None, Field(description="its name in TransformerLens, with {layer}; null: none")
    ]
    note: Annotated[str | None, Field(description="why there is no such name")] = None


class Limits(Answer):
    """What one request may bring; the service enforces these very numbers."""

    max_body_bytes: int
    max_prompts: int
    max_tokens_per_request: Annotated[
        int,
        Field(
            description="rows of all runs that a request asks for (a trajectory's shared ones once)"
        ),
    ]
    max_response_bytes: int
    n_positions: Annotated[int, Field(description="of one prompt, context and query together")]
    queue_size: Annotated[int, Field(description="requests that may wait")]
    deadline_seconds: Annotated[float, Field(description="of waiting and computing")]


class Versions(Answer):
    """What computes."""

    service: str
    torch: str
    transformers: str


class SelfCheck(Answer):
    """The block check of every layer that ran at start, in float32, on a fixed prompt."""

    when: str
    verdict: Literal["holds", "fails", "vacuous"]
    layers: int
    worst_relative_error: float | None
    least_unpatched_relative_error: float | None
    reason: str | None = None


class ModelAnswer(Answer):
    """The resident model, its hook points, and the limits."""

    model: ModelSummary
    architecture: str
    n_layers: int
    d_model: int
    d_mlp: int
    n_positions: int
    vocab_size: int
    fan_in_fan_out: Annotated[
        bool, Field(description="whether weights are stored (d_in, d_out), as ΔW is given")
    ]
    hook_points: list[HookPointInfo]
    limits: Limits
    versions: Versions
    self_check: SelfCheck
