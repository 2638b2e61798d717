"""Llama and its kin: RMS norms, rotary positions, grouped heads, a gated MLP.

The module serves Llama 2 and 3, SmolLM and TinyLlama; Mistral, whose layers all have a window; and
Qwen 2 and 3, whose layers may have one. Biases and norms of queries and keys are optional.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from service.engine.block import Block
from service.engine.families.family import (
    Ends,
    Family,
    Rotaries,
    activation,
    linear,
    rms_norm,
    rotaries,
    window,
)


def block(
    windows: Callable[[Any, int], int | None], module: Any, config: Any, layer: int, turn: Rotaries
) -> Block:
    """One block, with its window from `windows`."""
    attn, mlp = module.self_attn, module.mlp
    return Block(
        pre_attn=rms_norm(module.input_layernorm),
        queries=linear(attn.q_proj),
        keys_values=linear(attn.k_proj, attn.v_proj),
        attn_out=linear(attn.o_proj),
        pre_mlp=rms_norm(module.post_attention_layernorm),
        w_in=linear(mlp.gate_proj, mlp.up_proj),
        w_out=linear(mlp.down_proj),
        activation=activation(mlp.act_fn),
        n_heads=config.num_attention_heads,
        scaling=attn.scaling,
        gated=True,
        rotary=turn[""],
        window=windows(config, layer),
        query_norm=rms_norm(attn.q_norm) if hasattr(attn, "q_norm") else None,
        key_norm=rms_norm(attn.k_norm) if hasattr(attn, "k_norm") else None,
    )


def ends(model: Any) -> Ends:
    """Embedding, final norm and rotary embedding."""
    body = model.model
    turn = rotaries(body.rotary_emb, model.config)
    return Ends(body.embed_tokens.weight, rms_norm(body.norm), rotaries=turn)


LLAMA = Family(
    blocks="model.layers",
    first_weights=("mlp.gate_proj", "mlp.up_proj"),
    second_weight="mlp.down_proj",
    module_paths={
        "resid_pre": ("", "input"),
        "ln_1_out": ("input_layernorm", "output"),
        "attn_out": ("self_attn", "output"),
        "resid_mid": ("post_attention_layernorm", "input"),
        "mlp_in": ("mlp.gate_proj", "input"),
        "mlp_pre": ("mlp.gate_proj", "output"),
        "mlp_pre_linear": ("mlp.up_proj", "output"),
        "mlp_act": ("mlp.down_proj", "input"),
        "mlp_out": ("mlp", "output"),
        "resid_post": ("", "output"),
    },
    block=partial(block, lambda _config, _layer: None),
    ends=ends,
)
MISTRAL = replace(LLAMA, block=partial(block, lambda config, _layer: config.sliding_window))
QWEN = replace(LLAMA, block=partial(block, window))
