"""OPT: learned positions that start at row 2 of their table, layer norms, ReLU.

`final_layer_norm` of a block is its norm before the MLP.
"""

from __future__ import annotations

from typing import Any

import torch

from service.engine.block import Block
from service.engine.families.family import (
    Ends,
    Family,
    Rotaries,
    activation,
    layer_norm,
    linear,
)


def refuse(config: Any, _dtype: torch.dtype) -> str | None:
    """Refuse the shape of OPT-350m, and norms without weights."""
    if not config.do_layer_norm_before:
        return "its norms come after attention and MLP (`do_layer_norm_before` is false)"
    if config.word_embed_proj_dim != config.hidden_size:
        return "its embedding is projected (`word_embed_proj_dim` is not `hidden_size`)"
    if config._remove_final_layer_norm:
        return "it has no final norm (`_remove_final_layer_norm` in config.json)"
    if not config.layer_norm_elementwise_affine:
        return "its norms have no weights (`layer_norm_elementwise_affine` is false)"
    return None


def block(module: Any, config: Any, _layer: int, _rotaries: Rotaries) -> Block:
    """One block."""
    attn = module.self_attn
    return Block(
        pre_attn=layer_norm(module.self_attn_layer_norm),
        queries=linear(attn.q_proj),
        keys_values=linear(attn.k_proj, attn.v_proj),
        attn_out=linear(attn.out_proj),
        pre_mlp=layer_norm(module.final_layer_norm),
        w_in=linear(module.fc1),
        w_out=linear(module.fc2),
        activation=activation(module.activation_fn),
        n_heads=config.num_attention_heads,
        scaling=attn.scaling,
    )


def ends(model: Any) -> Ends:
    """Embeddings and the final norm. The first two rows of the position embedding hold no
    positions."""
    body = model.model.decoder
    positions = body.embed_positions
    return Ends(
        body.embed_tokens.weight,
        layer_norm(body.final_layer_norm),
        positions.weight[positions.offset :],
    )


OPT = Family(
    blocks="model.decoder.layers",
    first_weights=("fc1",),
    second_weight="fc2",
    module_paths={
        "resid_pre": ("", "input"),
        "ln_1_out": ("self_attn_layer_norm", "output"),
        "attn_out": ("self_attn", "output"),
        "resid_mid": ("final_layer_norm", "input"),
        "mlp_in": ("fc1", "input"),
        "mlp_pre": ("fc1", "output"),
        "mlp_act": ("fc2", "input"),
        "mlp_out": ("fc2", "output"),
        "resid_post": ("", "output"),
    },
    block=block,
    ends=ends,
    refuse=refuse,
)
