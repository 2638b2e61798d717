"""Random tiny models of every served family, built and saved by transformers.

A checkpoint has two or three layers, activations of ordinary size, and no weight at its default:
gains, biases and the norms of queries and keys are random too. The context changes what each layer
reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.checkpoints import ENDOFTEXT, byte_tokenizer

Positions = Literal["absolute", "relative"]

WINDOW = 6
"""Positions that a layer with a sliding window sees, the query's own included."""
N_POSITIONS = 96
"""Number of positions of every variant."""
VOCABULARY = 263
"""Number of tokens of every variant: the byte tokenizer with its special token."""
ZERO_GAINS = (1, 5, 11)
"""Coordinates whose gain after the MLP is exactly zero in `gemma3` (a stored weight of -1)."""


@dataclass(frozen=True)
class Variant:
    """A tiny model, and what is true of its architecture."""

    config: Callable[[], Any]
    """Builds the configuration of transformers."""
    positions: Positions = "relative"
    gated: bool = True
    """Whether the MLP has a gate and an up projection."""
    parallel: bool = False
    """Whether the MLP reads the block's input, beside the attention."""
    post_norms: bool = False
    """Whether a norm follows the attention, and another one the MLP."""
    windows: tuple[int | None, ...] = (None, None)
    """Each layer's sliding window, in positions."""
    bias: str | None = None
    """Name of a bias at the block's output; `{}` stands for the layer."""
    token: str | None = ENDOFTEXT
    """The tokenizer's BOS token, with id 0."""
    prepended: bool = False
    """Whether the tokenizer begins each text with its BOS token by itself."""


COMMON = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": N_POSITIONS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
GROUPED = {**COMMON, "num_key_value_heads": 2, "intermediate_size": 40}


def _llama(**config: Any) -> Callable[[], Any]:
    """Builds a Llama with two heads of queries for each of keys and values."""
    return partial(LlamaConfig, **{**GROUPED, **config})


def _rope(kind: str, **parameters: object) -> Callable[[], Any]:
    """Builds a Llama with this type of rotary positions."""
    rope = {"rope_type": kind, "rope_theta": 500.0, **parameters}
    return _llama(head_dim=16, rope_parameters=rope)


def _neox(parallel: bool, fraction: float) -> Callable[[], Any]:
    """Builds a GPT-NeoX that rotates a fraction of each head."""
    rope = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": fraction}
    return partial(
        GPTNeoXConfig,
        **COMMON,
        intermediate_size=48,
        use_parallel_residual=parallel,
        rope_parameters=rope,
    )


def _gemma3() -> Any:
    """A Gemma 3 with windows in two of three layers, and heads wider than d_model / n_heads."""
    return Gemma3TextConfig(
        **{**GROUPED, "hidden_size": 24, "num_hidden_layers": 3, "num_key_value_heads": 1},
        head_dim=16,
        query_pre_attn_scalar=12,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0},
        },
    )


def _opt(**config: Any) -> Callable[[], Any]:
    """Builds an OPT of the kind with norms before attention and MLP."""
    return partial(OPTConfig, **{**COMMON, "ffn_dim": 48, "dropout": 0.0, **config})


_LLAMA_3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 24}
_NEOX_BIAS = "gpt_neox.layers.{}.mlp.dense_4h_to_h.bias"
_OPT_BIAS = "model.decoder.layers.{}.fc2.bias"
_neox_variant = partial(Variant, gated=False, bias=_NEOX_BIAS)
_opt_variant = partial(Variant, gated=False, positions="absolute", token="</s>", prepended=True)

VARIANTS: Mapping[str, Variant] = {
    "gpt2": Variant(
        lambda: GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=N_POSITIONS,
            n_embd=32,
            n_layer=2,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
        ),
        positions="absolute",
        gated=False,
        bias="transformer.h.{}.mlp.c_proj.bias",
    ),
    "llama": Variant(_llama(), token="<s>"),
    "llama-tied": Variant(_llama(tie_word_embeddings=True)),
    "llama-biases": Variant(
        _llama(attention_bias=True, mlp_bias=True),
        bias="model.layers.{}.mlp.down_proj.bias",
        token="<s>",
        prepended=True,
    ),
    "llama-wide-heads": Variant(_llama(head_dim=12), token=None),
    "llama-linear": Variant(_rope("linear", factor=4.0)),
    "llama-yarn": Variant(_rope("yarn", **_YARN)),
    "llama-llama3": Variant(_rope("llama3", **_LLAMA_3)),
    "llama-proportional": Variant(_rope("proportional", partial_rotary_factor=0.5)),
    "mistral": Variant(
        partial(MistralConfig, **GROUPED, sliding_window=WINDOW),
        windows=(WINDOW, WINDOW),
        token="<s>",
        prepended=True,
    ),
    "qwen2": Variant(partial(Qwen2Config, **GROUPED)),
    "qwen2-windows": Variant(
        partial(
            Qwen2Config,
            **GROUPED,
            use_sliding_window=True,
            sliding_window=WINDOW,
            max_window_layers=1,
        ),
        windows=(None, WINDOW),
    ),
    "qwen3": Variant(partial(Qwen3Config, **GROUPED, head_dim=16)),
    "gemma3": Variant(
        _gemma3,
        post_norms=True,
        windows=(WINDOW, None, WINDOW),
        token="<bos>",
        prepended=True,
    ),
    "neox-parallel": _neox_variant(_neox(True, 1.0), parallel=True),
    "neox-serial": _neox_variant(_neox(False, 1.0)),
    "neox-partial": _neox_variant(_neox(True, 0.25), parallel=True),
    "opt": _opt_variant(_opt(), bias=_OPT_BIAS),
    "opt-biasless": _opt_variant(_opt(enable_bias=False)),
    "opt-bare": _opt_variant(_opt(enable_bias=False, layer_norm_elementwise_affine=False)),
}
"""Every variant by name; the part of a name before the first hyphen is its family."""
SERVED = tuple(name for name in VARIANTS if name != "opt-bare")
"""The variants that can be loaded."""


def save(
    name: str, folder: Path, dtype: torch.dtype = torch.float32, *, seed: int = 0, **changes: object
) -> Path:
    """Save a variant with random weights and a byte-level tokenizer.

    Args:
        name: A key of `VARIANTS`.
        folder: Folder to save to.
        dtype: Dtype of the stored weights.
        seed: Seed of the weights.
        changes: Attributes of the configuration to set before the model is built.
    """
    variant = VARIANTS[name]
    config = variant.config()
    for key, value in changes.items():
        setattr(config, key, value)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(_value(parameter_name, noise, config.model_type))
    model.to(dtype).save_pretrained(folder)
    tokenizer = byte_tokenizer(
        variant.token is not None, token=variant.token or ENDOFTEXT, prepended=variant.prepended
    )
    tokenizer.save_pretrained(folder)
    return folder


def _value(name: str, noise: torch.Tensor, family: str) -> torch.Tensor:
    """The value of one parameter, made from standard normal numbers of its shape."""
    norm = "norm" in name or "ln_" in name
    if name.endswith("bias"):
        return (0.2 if norm else 0.3) * noise
    if norm and family == "gemma3_text":  # stored as the gain minus 1
        value = 0.3 * noise
        if "post_feedforward" in name:
            value[list(ZERO_GAINS)] = -1.0
        return value
    if norm:
        return 1.0 + 0.3 * noise
    if any(part in name for part in ("embed", "wte", "wpe")) and "embed_out" not in name:
        # Gemma multiplies its embeddings by the root of d_model.
        return (0.1 if family == "gemma3_text" else 0.5) * noise
    inputs = noise.shape[0] if family == "gpt2" and noise.ndim == 2 else noise.shape[-1]
    scaled: torch.Tensor = 1.5 * noise / inputs**0.5
    return scaled
