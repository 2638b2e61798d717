"""Gemma 3 (text): norms after attention and after the MLP, gains stored minus 1, a scaled
embedding.

`post_attention_layernorm` is a post-norm here; in Llama it is the norm before the MLP.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from service.engine.block import Block
from service.engine.families.family import (
    Ends,
    Rotaries,
    activation,
    linear,
    rms_norm,
    rotaries,
    window,
)
from service.engine.families.llama import LLAMA

OFFSET = 1.0


def refuse(config: Any, dtype: torch.dtype) -> str | None:
    """Refuse soft-capping, attention to later tokens, and float16."""
    if config.attn_logit_softcapping is not None or config.final_logit_softcapping is not None:
        return "its scores or logits are soft-capped (`*_logit_softcapping` in config.json)"
    if config.use_bidirectional_attention:
        return "it attends to later tokens (`use_bidirectional_attention` in config.json)"
    if dtype == torch.float16:
        return "its residual stream exceeds float16: set DELTAW_DTYPE to `bfloat16` or `float32`"
    return None


def block(module: Any, config: Any, layer: int, turn: Rotaries) -> Block:
    """One block, with the window and the rotary embedding of its type."""
    attn, mlp = module.self_attn, module.mlp
    return Block(
        pre_attn=rms_norm(module.input_layernorm, OFFSET),
        queries=linear(attn.q_proj),
        keys_values=linear(attn.k_proj, attn.v_proj),
        attn_out=linear(attn.o_proj),
        pre_mlp=rms_norm(module.pre_feedforward_layernorm, OFFSET),
        w_in=linear(mlp.gate_proj, mlp.up_proj),
        w_out=linear(mlp.down_proj),
        activation=activation(mlp.act_fn),
        n_heads=config.num_attention_heads,
        scaling=attn.scaling,
        gated=True,
        rotary=turn[config.layer_types[layer]],
        window=window(config, layer),
        query_norm=rms_norm(attn.q_norm, OFFSET),
        key_norm=rms_norm(attn.k_norm, OFFSET),
        post_attn=rms_norm(module.post_attention_layernorm, OFFSET),
        post_mlp=rms_norm(module.post_feedforward_layernorm, OFFSET),
    )


def ends(model: Any) -> Ends:
    """The embedding and its scale, the final norm, and a rotary embedding per type of layer."""
    body = model.model
    return Ends(
        body.embed_tokens.weight,
        rms_norm(body.norm, OFFSET),
        # In half precision the module's own buffer is rounded already.
        embedding_scale=torch.tensor(body.embed_tokens.scalar_embed_scale, device=model.device),
        rotaries=rotaries(body.rotary_emb, model.config),
    )


GEMMA3 = replace(
    LLAMA,
    module_paths={
        **LLAMA.module_paths,
        "attn_out": ("post_attention_layernorm", "output"),
        "resid_mid": ("pre_feedforward_layernorm", "input"),
        "mlp_out": ("post_feedforward_layernorm", "output"),
    },
    block=block,
    ends=ends,
    post_norm="post_feedforward_layernorm",
    gain_offset=OFFSET,
    refuse=refuse,
)
