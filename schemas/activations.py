"""`POST /v1/activations`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, get_args

from pydantic import Field

from schemas.common import (
    Answer,
    Encoding,
    Layers,
    ModelSummary,
    Positions,
    Request,
    Text,
    Token,
    Values,
    with_examples,
)

HookPoint = Literal[
    "resid_pre",
    "ln_1_out",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_pre",
    "mlp_pre_linear",
    "mlp_act",
    "mlp_out",
    "resid_post",
]
"""The vectors of one block, in the order in which the block computes them. Only gated MLPs have
`mlp_pre_linear`."""
Reduce = Literal["none", "norm", "mean"]


class ActivationsRequest(Request):
    """Prompts, and the activations to capture."""

    model_config = with_examples(
        {
            "prompts": ["The capital of Germany is Berlin"],
            "layers": [-1],
            "hook_points": ["mlp_in", "resid_post"],
            "positions": "last",
            "reduce": "norm",
        },
        {"prompts": ["The capital of Germany is", [0]], "layers": [0], "encoding": "base64"},
    )

    prompts: Annotated[list[Text], Field(min_length=1)]
    """Each is a run of its own."""
    layers: Layers = "all"
    hook_points: Annotated[list[str], Field(min_length=1, max_length=len(get_args(HookPoint)))] = [
        "mlp_in"
    ]
    """Any of `resid_pre`, `ln_1_out`, `attn_out`, `resid_mid`, `mlp_in`, `mlp_pre`,
    `mlp_pre_linear` (gated MLPs only), `mlp_act`, `mlp_out`, `resid_post`. `/v1/model` describes
    those that the model has."""
    positions: Annotated[Positions, Field(description="Token indices into each prompt.")] = "last"
    reduce: Reduce = "none"
    """`none`: the vectors, [positions, width]. `norm`: the norm of each vector, [positions].
    `mean`: the mean over the positions, [width]. Norms and means are computed in float64."""
    encoding: Encoding = "json"


@dataclass(frozen=True)
class Activation(Answer, Generic[Values]):
    """One hook point of one layer in one prompt."""

    layer: int
    hook_point: HookPoint
    positions: Sequence[int]
    """Token indices into the prompt."""
    values: Values


@dataclass(frozen=True)
class PromptActivations(Answer, Generic[Values]):
    """The tokens and activations of one prompt."""

    tokens: Sequence[Token]
    activations: Sequence[Activation[Values]]


@dataclass(frozen=True)
class ActivationsAnswer(Answer, Generic[Values]):
    """One entry per prompt, in the order of the request."""

    model: ModelSummary
    prompts: Sequence[PromptActivations[Values]]
