"""Model families: where a block's tensors are, and how it is walked.

A family is a row of the table; unknown ones are refused at load with the reason. Tensors are taken
as they lie in the checkpoint's modules: nothing is copied, nothing resident is ever written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Norm:
    """A layer norm with gain and bias, (d_model) each."""

    gain: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise rows of (rows, d_model)."""
        return F.layer_norm(x, self.gain.shape, self.gain, self.bias, self.eps)

    def to(self, dtype: torch.dtype) -> Norm:
        """The same in another dtype; itself where it is that one already."""
        return Norm(self.gain.to(dtype), self.bias.to(dtype), self.eps)


@dataclass(frozen=True)
class Affine:
    """`x·W + b` with W stored (d_in, d_out), as in transformers' Conv1D."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rows of (rows, d_in) to (rows, d_out)."""
        return torch.addmm(self.bias, x, self.weight)

    def columns(self, start: int, stop: int | None) -> Affine:
        """The part that gives the outputs from `start` to `stop`; a view."""
        return Affine(self.weight[:, start:stop], self.bias[start:stop])

    def to(self, dtype: torch.dtype) -> Affine:
        """The same in another dtype; itself where it is that one already."""
        return Affine(self.weight.to(dtype), self.bias.to(dtype))


@dataclass(frozen=True)
class Block:
    """One pre-norm transformer block with a serial MLP.

    Args:
        ln_1: Before attention.
        qkv: Queries, keys and values side by side, (d_model, 3·d_model).
        attn_out: Attention's output projection, (d_model, d_model).
        ln_2: Before the MLP.
        w_in: The MLP's first layer, (d_model, d_mlp): the weight that is updated.
        w_out: The MLP's second layer, (d_mlp, d_model).
        act: The MLP's activation function.
        n_heads: Attention heads.
        scaling: What scores are multiplied by.
    """

    ln_1: Norm
    qkv: Affine
    attn_out: Affine
    ln_2: Norm
    w_in: Affine
    w_out: Affine
    act: Activation
    n_heads: int
    scaling: float

    def to(self, dtype: torch.dtype) -> Block:
        """The block in another dtype: a cast for one use, nothing stays resident."""
        if self.w_in.weight.dtype == dtype:
            return self
        return Block(
            ln_1=self.ln_1.to(dtype),
            qkv=self.qkv.to(dtype),
            attn_out=self.attn_out.to(dtype),
            ln_2=self.ln_2.to(dtype),
            w_in=self.w_in.to(dtype),
            w_out=self.w_out.to(dtype),
            act=self.act,
            n_heads=self.n_heads,
            scaling=self.scaling,
        )


@dataclass(frozen=True)
class Family:
    """How the models of one architecture are laid out.

    Args:
        weight_in: The name of the MLP's first weight in the checkpoint, with `{layer}`.
        weight_out: The same of its second weight.
        module_paths: The module whose input or output each hook point is, with `{layer}`.
        fan_in_fan_out: Whether weights are stored (d_in, d_out).
        refuse: The reason why a configuration cannot be served, or None.
        blocks: The blocks of a loaded model.
    """

    weight_in: str
    weight_out: str
    module_paths: Mapping[str, tuple[str, str]]
    fan_in_fan_out: bool
    refuse: Callable[[Any], str | None]
    blocks: Callable[[Any], tuple[Block, ...]]


def _refuse_gpt2(config: Any) -> str | None:
    if config.add_cross_attention:
        return "it has cross attention, for which the theorem is not stated"
    if config.n_layer < 1:
        return "it has no layers"
    return None


def _gpt2_blocks(model: Any) -> tuple[Block, ...]:
    return tuple(
        Block(
            ln_1=_norm(block.ln_1),
            qkv=_affine(block.attn.c_attn),
            attn_out=_affine(block.attn.c_proj),
            ln_2=_norm(block.ln_2),
            w_in=_affine(block.mlp.c_fc),
            w_out=_affine(block.mlp.c_proj),
            act=_activation(model.config.activation_function, block.mlp.act),
            n_heads=block.attn.num_heads,
            scaling=block.attn.scaling,
        )
        for block in model.transformer.h
    )


def _norm(module: nn.LayerNorm) -> Norm:
    return Norm(module.weight, module.bias, module.eps)


def _affine(module: Any) -> Affine:
    return Affine(module.weight, module.bias)


def _activation(name: str, module: Activation) -> Activation:
    """`gelu_new` is eight element-wise calls; torch has the same function in one."""
    return nn.GELU(approximate="tanh") if name == "gelu_new" else module


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        weight_in="transformer.h.{layer}.mlp.c_fc.weight",
        weight_out="transformer.h.{layer}.mlp.c_proj.weight",
        module_paths={
            "resid_pre": ("transformer.h.{layer}", "input"),
            "ln_1_out": ("transformer.h.{layer}.attn", "input"),
            "attn_out": ("transformer.h.{layer}.attn", "output"),
            "resid_mid": ("transformer.h.{layer}.ln_2", "input"),
            "mlp_in": ("transformer.h.{layer}.mlp.c_fc", "input"),
            "mlp_pre": ("transformer.h.{layer}.mlp.c_fc", "output"),
            "mlp_act": ("transformer.h.{layer}.mlp.c_proj", "input"),
            "mlp_out": ("transformer.h.{layer}.mlp", "output"),
            "resid_post": ("transformer.h.{layer}", "output"),
        },
        fan_in_fan_out=True,
        refuse=_refuse_gpt2,
        blocks=_gpt2_blocks,
    ),
}
"""Served families, by the `model_type` of their configuration."""
