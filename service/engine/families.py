"""Model families: where the tensors of an architecture's blocks are.

A family is a row of the table. Other architectures are refused at load with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from schemas.activations import HookPoint
from service.engine.block import Block
from service.engine.layers import Norm, affine


@dataclass(frozen=True)
class Family:
    """The layout of one architecture.

    Args:
        weight_in: Name of the MLP's first weight in the checkpoint, with `{layer}`.
        weight_out: Name of its second weight.
        module_paths: Module path of each hook point, with `{layer}`, and the side of the module.
        fan_in_fan_out: Whether weights are stored (d_in, d_out).
        refuse: Returns the reason why a configuration cannot be served, or None.
        blocks: Returns the blocks of a loaded model.
    """

    weight_in: str
    weight_out: str
    module_paths: Mapping[HookPoint, tuple[str, Literal["input", "output"]]]
    fan_in_fan_out: bool
    refuse: Callable[[Any], str | None]
    blocks: Callable[[Any], tuple[Block, ...]]


def _refuse_gpt2(config: Any) -> str | None:
    if config.add_cross_attention:
        return "it has cross attention, for which the theorem is not stated"
    return "it has no layers" if config.n_layer < 1 else None


def _gpt2_blocks(model: Any) -> tuple[Block, ...]:
    width = model.config.n_embd
    gelu_new = model.config.activation_function == "gelu_new"
    return tuple(
        Block(
            ln_1=_norm(block.ln_1),
            queries=affine(*_columns(block.attn.c_attn, slice(width))),
            keys_values=affine(*_columns(block.attn.c_attn, slice(width, None))),
            attn_out=affine(*_columns(block.attn.c_proj)),
            ln_2=_norm(block.ln_2),
            w_in=affine(*_columns(block.mlp.c_fc), keep=True),
            w_out=affine(*_columns(block.mlp.c_proj)),
            # `gelu_new` is eight element-wise calls; torch has it in one.
            act=nn.GELU(approximate="tanh") if gelu_new else block.mlp.act,
            n_heads=block.attn.num_heads,
            scaling=block.attn.scaling,
        )
        for block in model.transformer.h
    )


def _norm(module: nn.LayerNorm) -> Norm:
    return Norm(module.weight.clone(), module.bias.clone(), module.eps)


def _columns(module: Any, chosen: slice = slice(None)) -> tuple[Tensor, Tensor]:
    return module.weight[:, chosen], module.bias[chosen]


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
