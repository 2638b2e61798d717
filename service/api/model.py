"""`GET /v1/model`: the resident model, the places of its hook points, and the limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
import transformers
from fastapi import APIRouter, Depends, Response

from schemas.activations import HookPoint
from schemas.common import UNSET
from schemas.model import HookPointInfo, ModelAnswer, Versions
from service import __version__
from service.api.exchange import Exchange, plain_exchange
from service.api.openapi import answers
from service.engine import Model
from service.errors import Loading

router = APIRouter()

TRANSFORMER_LENS: Mapping[HookPoint, str] = {
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "mlp_in": "blocks.{layer}.mlp.hook_in",
    "mlp_pre": "blocks.{layer}.mlp.hook_pre",
    "mlp_pre_linear": "blocks.{layer}.mlp.hook_pre_linear",
    "mlp_act": "blocks.{layer}.mlp.hook_post",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "resid_post": "blocks.{layer}.hook_resid_post",
}
"""Names of the same vectors in TransformerLens. `mlp.hook_in` is that of version 4's bridge."""
NOTES: Mapping[HookPoint, str] = {
    "ln_1_out": "`ln1.hook_normalized` is before gain and bias.",
    "mlp_in": "`ln2.hook_normalized` is before gain and bias, `hook_mlp_in` before the norm. "
    "Neither is this vector.",
    "mlp_pre_linear": "The output of `up_proj`, which TransformerLens calls `W_in`. Its `W_gate` "
    "is `gate_proj`, whose output is `mlp_pre`.",
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
    """Describe the resident model.

    The checkpoint's identity and shape, the place of each hook point in it, the limits of a
    request, versions, and the result of the equivalence check at start.
    """
    loaded, state = ask.model, ask.state
    if state.self_check is None:
        raise Loading("The model is still loading.")
    return await ask.respond(
        ModelAnswer(
            model=loaded.summary,
            architecture=loaded.architecture,
            n_layers=loaded.n_layers,
            d_model=loaded.d_model,
            d_mlp=loaded.d_mlp,
            n_positions=loaded.n_positions,
            vocab_size=loaded.vocab_size,
            config_digest=loaded.config_digest,
            tokenizer_digest=loaded.tokenizer.digest,
            fan_in_fan_out=loaded.family.fan_in_fan_out,
            first_weights=[weight.name for weight in loaded.first_weights("{layer}")],
            positions="absolute" if loaded.absolute_positions else "relative",
            parallel=loaded.parallel,
            post_norms=loaded.post_norms,
            anchor=loaded.anchor,
            hook_points=[hook_point_info(loaded, point) for point in loaded.hook_points],
            limits=state.limits,
            versions=Versions(__version__, torch.__version__, transformers.__version__),
            self_check=state.self_check,
        )
    )


def hook_point_info(loaded: Model, point: HookPoint) -> HookPointInfo:
    """The place of a hook point in the resident model, and its name in TransformerLens."""
    module, side = loaded.module_path(point) or (None, None)
    return HookPointInfo(
        name=point,
        module=module,
        side=side,
        width=loaded.width(point),
        # TransformerLens hooks modules, so a vector that no module holds has no name there either.
        transformer_lens=TRANSFORMER_LENS.get(point) if module else None,
        note=NOTES.get(point, UNSET),
    )
