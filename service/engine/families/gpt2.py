"""GPT-2: learned positions, layer norms, one matrix for queries, keys and values."""

from __future__ import annotations

from typing import Any

import torch

from service.engine.block import Block
from service.engine.families.family import Ends, Family, Rotaries, activation, layer_norm
from service.engine.layers import Affine, affine


def refuse(config: Any, _dtype: torch.dtype) -> str | None:
    """Refuse cross attention."""
    cross = "it has cross attention, for which the theorem is not stated"
    return cross if config.add_cross_attention else None


def block(module: Any, config: Any, _layer: int, _rotaries: Rotaries) -> Block:
    """One block."""
    width = config.n_embd
    return Block(
        pre_attn=layer_norm(module.ln_1),
        queries=columns(module.attn.c_attn, slice(width)),
        keys_values=columns(module.attn.c_attn, slice(width, None)),
        attn_out=columns(module.attn.c_proj),
        pre_mlp=layer_norm(module.ln_2),
        w_in=columns(module.mlp.c_fc),
        w_out=columns(module.mlp.c_proj),
        activation=activation(module.mlp.act),
        n_heads=module.attn.num_heads,
        scaling=module.attn.scaling,
    )


def columns(module: Any, chosen: slice = slice(None)) -> Affine:
    """Some columns of a Conv1D, whose weight is stored (d_in, d_out)."""
    return affine(module.weight[:, chosen], module.bias[chosen])


def ends(model: Any) -> Ends:
    """Embeddings and the final norm."""
    body = model.transformer
    return Ends(body.wte.weight, layer_norm(body.ln_f), body.wpe.weight)


GPT2 = Family(
    blocks="transformer.h",
    first_weights=("mlp.c_fc",),
    second_weight="mlp.c_proj",
    module_paths={
        "resid_pre": ("", "input"),
        "ln_1_out": ("attn", "input"),
        "attn_out": ("attn", "output"),
        "resid_mid": ("ln_2", "input"),
        "mlp_in": ("mlp.c_fc", "input"),
        "mlp_pre": ("mlp.c_fc", "output"),
        "mlp_act": ("mlp.c_proj", "input"),
        "mlp_out": ("mlp", "output"),
        "resid_post": ("", "output"),
    },
    block=block,
    ends=ends,
    fan_in_fan_out=True,
    refuse=refuse,
)
