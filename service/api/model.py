"""`GET /v1/model`: what is loaded, where its hook points are, and the limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

import torch
import transformers
from fastapi import APIRouter, Depends, Response

from schemas.activations import HookPoint
from schemas.model import ModelAnswer
from service import __version__
from service.api.activations import width
from service.api.exchange import Exchange, plain_exchange
from service.api.openapi import answers

router = APIRouter()

TRANSFORMER_LENS: Mapping[HookPoint, str] = {
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "mlp_in": "blocks.{layer}.mlp.hook_in",
    "mlp_pre": "blocks.{layer}.mlp.hook_pre",
    "mlp_act": "blocks.{layer}.mlp.hook_post",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "resid_post": "blocks.{layer}.hook_resid_post",
}
"""The same vector's name there; `mlp.hook_in` is version 4's bridge."""
NOTES: Mapping[HookPoint, str] = {
    "ln_1_out": "`ln1.hook_normalized` is before gain and bias",
    "mlp_in": "`ln2.hook_normalized` is before gain and bias, `hook_mlp_in` is before ln_2: "
    "neither is this",
}
PROBLEMS = (
    "missing_key",
    "wrong_key",
    "not_acceptable",
    "internal",
    "loading",
    "self_check_failed",
)


@router.get(
    "/v1/model",
    response_model=None,
    responses=answers(ModelAnswer, tensors=False, problems=PROBLEMS),
)
async def model(ask: Annotated[Exchange, Depends(plain_exchange)]) -> Response:
    """Say what is loaded.

    The checkpoint's identity and shape, each hook point's place in it, what one request may bring,
    versions, and what the equivalence check at start found.
    """
    loaded, state = ask.model, ask.state
    return await ask.answer(
        {
            "architecture": loaded.architecture,
            "n_layers": loaded.n_layers,
            "d_model": loaded.d_model,
            "d_mlp": loaded.d_mlp,
            "n_positions": loaded.n_positions,
            "vocab_size": loaded.vocab_size,
            "fan_in_fan_out": loaded.family.fan_in_fan_out,
            "hook_points": [_hook_point(ask, point) for point in get_args(HookPoint)],
            "limits": state.limits.model_dump(),
            "versions": {
                "service": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "self_check": state.self_check,
        }
    )


def _hook_point(ask: Exchange, point: HookPoint) -> dict[str, Any]:
    module, side = ask.model.family.module_paths[point]
    said = {
        "name": point,
        "module": module,
        "side": side,
        "width": width(ask.model, point),
        "transformer_lens": TRANSFORMER_LENS.get(point),
    }
    return said | ({"note": NOTES[point]} if point in NOTES else {})
