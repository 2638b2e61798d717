"""GPT-NeoX (Pythia): layer norms, partial rotary positions, blocks that are parallel or serial.

`post_attention_layernorm` reads the stream before attention where the block is parallel.
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
    rotaries,
)
from service.engine.layers import Affine, affine


def block(module: Any, config: Any, _layer: int, turn: Rotaries) -> Block:
    """One block."""
    attn, heads = module.attention, config.num_attention_heads
    return Block(
        pre_attn=layer_norm(module.input_layernorm),
        queries=heads_of(attn.query_key_value, heads, slice(1)),
        keys_values=heads_of(attn.query_key_value, heads, slice(1, 3)),
        attn_out=linear(attn.dense),
        pre_mlp=layer_norm(module.post_attention_layernorm),
        w_in=linear(module.mlp.dense_h_to_4h),
        w_out=linear(module.mlp.dense_4h_to_h),
        activation=activation(module.mlp.act),
        n_heads=heads,
        scaling=attn.scaling,
        parallel=config.use_parallel_residual,
        rotary=turn[""],
    )


def heads_of(module: Any, heads: int, which: slice) -> Affine:
    """Some of queries, keys and values. Within each head of the fused matrix, the three follow one
    another."""

    def part(fused: torch.Tensor) -> torch.Tensor:
        width = len(fused) // (3 * heads)
        by_head = fused.view(heads, 3, width, *fused.shape[1:])
        return by_head[:, which].transpose(0, 1).flatten(0, 2)

    return affine(part(module.weight).T, None if module.bias is None else part(module.bias))


def ends(model: Any) -> Ends:
    """Embedding, final norm and rotary embedding."""
    body = model.gpt_neox
    turn = rotaries(body.rotary_emb, model.config)
    return Ends(body.embed_in.weight, layer_norm(body.final_layer_norm), rotaries=turn)


GPT_NEOX = Family(
    blocks="gpt_neox.layers",
    first_weights=("mlp.dense_h_to_4h",),
    second_weight="mlp.dense_4h_to_h",
    module_paths={
        "resid_pre": ("", "input"),
        "ln_1_out": ("attention", "input"),
        "attn_out": ("attention", "output"),
        "resid_mid": ("post_attention_layernorm", "input"),
        "mlp_in": ("mlp", "input"),
        "mlp_pre": ("mlp.dense_h_to_4h", "output"),
        "mlp_act": ("mlp.dense_4h_to_h", "input"),
        "mlp_out": ("mlp", "output"),
        "resid_post": ("", "output"),
    },
    block=block,
    ends=ends,
)
