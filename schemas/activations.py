"""`POST /v1/activations`."""

from __future__ import annotations

from typing import Annotated, Generic, Literal

from pydantic import ConfigDict, Field

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
)

HookPoint = Literal[
    "resid_pre",
    "ln_1_out",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_pre",
    "mlp_act",
    "mlp_out",
    "resid_post",
]


class ActivationsRequest(Request):
    """Which activations of which prompts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompts": ["The capital of Germany is Berlin"],
                    "layers": [-1],
                    "hook_points": ["mlp_in", "resid_post"],
                    "positions": "last",
                    "reduce": "norm",
                },
                {
                    "prompts": ["The capital of Germany is", [0]],
                    "layers": [0],
                    "encoding": "base64",
                },
            ]
        }
    )

    prompts: Annotated[list[Text], Field(min_length=1, description="each is run by itself")]
    layers: Layers = "all"
    hook_points: Annotated[
        list[str],
        Field(
            min_length=1,
            max_length=9,
            description="any of `resid_pre`, `ln_1_out`, `attn_out`, `resid_mid`, `mlp_in`, "
            "`mlp_pre`, `mlp_act`, `mlp_out`, `resid_post`; `/v1/model` says what each is",
        ),
    ] = ["mlp_in"]
    positions: Annotated[Positions, Field(description="indices into each prompt")] = "last"
    reduce: Annotated[
        Literal["none", "norm", "mean"],
        Field(
            description="`none`: [positions, width]; `norm`: the norm of each row, [positions]; "
            "`mean`: over the positions, [width]. The latter two are computed in float64"
        ),
    ] = "none"
    encoding: Encoding = "json"


class Activation(Answer, Generic[Values]):
    """One hook point of one layer in one prompt."""

    layer: int
    hook_point: HookPoint
    positions: Annotated[list[int], Field(description="indices into the prompt")]
    values: Values


class PromptActivations(Answer, Generic[Values]):
    """One prompt."""

    tokens: list[Token]
    activations: list[Activation[Values]]


class ActivationsAnswer(Answer, Generic[Values]):
    """One entry a prompt, in the order of the request."""

    model: ModelSummary
    prompts: list[PromptActivations[Values]]
