"""Model families: the tensors of a block, and its arithmetic.

A family is a row of the table; other architectures are refused at load with the reason. Matrices
stay as they are in the checkpoint's modules, except in float32 on a processor with AVX: oneDNN
multiplies up to twice as fast by matrices in its packed layout, so they are kept packed. Other
tensors are copies, because a view would keep the whole file in memory. Resident tensors are never
written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.activations import HookPoint

PACKED = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    and all(hasattr(torch.ops.mkldnn, op) for op in ("_linear_pointwise", "_reorder_linear_weight"))
)
"""Whether torch has oneDNN's packed products for this processor, as its compiler uses them."""
ROW_STEPS = ((64, 4), (256, 8), (math.inf, 16))
"""(maximum rows, step): row counts are padded to these steps, because oneDNN compiles a kernel of
half a megabyte per row count and matrix. One row takes longer than four."""


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
        """The same in another dtype; itself if it has that dtype."""
        return Norm(self.gain.to(dtype), self.bias.to(dtype), self.eps)


@dataclass(frozen=True)
class Affine:
    """`x·W + b` with W (d_in, d_out), as in transformers' Conv1D.

    Args:
        matrix: W, or Wᵀ in oneDNN's packed layout.
        bias: b, (d_out).
        dense: W beside its packed form, if it is used often; otherwise W is unpacked at each use.
    """

    matrix: Tensor
    bias: Tensor
    dense: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """W, (d_in, d_out)."""
        if self.dense is not None:
            return self.dense
        return self.matrix.to_dense().T if self.matrix.is_mkldnn else self.matrix

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply rows of (rows, d_in): (rows, d_out)."""
        if not self.matrix.is_mkldnn:
            return torch.addmm(self.bias, x, self.matrix)
        step = next(step for most, step in ROW_STEPS if len(x) <= most)
        lacking = step * max(1, math.ceil(len(x) / step)) - len(x)
        padded = F.pad(x, (0, 0, 0, lacking)) if lacking else x
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            padded, self.matrix, self.bias, "none", [], ""
        )
        return product[: len(x)]

    def to(self, dtype: torch.dtype) -> Affine:
        """The same in another dtype; itself if it has that dtype."""
        if self.bias.dtype == dtype:
            return self
        return Affine(self.weight.to(dtype), self.bias.to(dtype))


Note = Callable[[HookPoint, Tensor], None]
"""Receives each hook point's vectors as the block computes them."""


class MLPPatch(Protocol):
    """Changed weights of one block's MLP."""

    def mlp_pre(self, block: Block, n: Tensor) -> Tensor:
        """mlp_pre of rows of mlp_in, (rows, d_model) to (rows, d_mlp)."""

    def mlp_out(self, block: Block, act: Tensor) -> Tensor:
        """mlp_out of rows of mlp_act, (rows, d_mlp) to (rows, d_model)."""

    def shift(self, resid_post: Tensor) -> Tensor:
        """The block's output with Δh, (rows, d_model)."""


@dataclass(frozen=True)
class Block:
    """One pre-norm transformer block with a serial MLP.

    Args:
        ln_1: Before attention.
        queries: Attention's queries, (d_model, d_model).
        keys_values: Attention's keys and values side by side, (d_model, 2·d_model).
        attn_out: Attention's output projection, (d_model, d_model).
        ln_2: Before the MLP.
        w_in: The MLP's first layer, (d_model, d_mlp): the weight that is updated.
        w_out: The MLP's second layer, (d_mlp, d_model).
        act: The MLP's activation function.
        n_heads: Number of attention heads.
        scaling: Factor of the attention scores.
    """

    ln_1: Norm
    queries: Affine
    keys_values: Affine
    attn_out: Affine
    ln_2: Norm
    w_in: Affine
    w_out: Affine
    act: Callable[[Tensor], Tensor]
    n_heads: int
    scaling: float

    def mlp(self, h: Tensor, n: Tensor, note: Note, patch: MLPPatch | None = None) -> Tensor:
        """The second half of the block, from mlp_in to resid_post: h + w_out(act(w_in(n))).

        Args:
            h: resid_mid, (rows, d_model).
            n: mlp_in = ln_2(h), (rows, d_model).
            note: Receives mlp_pre, mlp_act, mlp_out and resid_post.
            patch: Changed weights; None: the resident ones.
        """
        pre = self.w_in(n) if patch is None else patch.mlp_pre(self, n)
        note("mlp_pre", pre)
        act = self.act(pre)
        note("mlp_act", act)
        out = self.w_out(act) if patch is None else patch.mlp_out(self, act)
        note("mlp_out", out)
        post = h + out if patch is None else patch.shift(h + out)
        note("resid_post", post)
        return post

    def to(self, dtype: torch.dtype) -> Block:
        """The block in another dtype, for one use: the casts do not stay resident."""
        if self.w_in.weight.dtype == dtype:
            return self
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        weights: dict[str, Any] = {
            name: part.to(dtype) for name, part in parts.items() if isinstance(part, Norm | Affine)
        }
        return replace(self, **weights)


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


def affine(weight: Tensor, bias: Tensor, *, keep: bool = False) -> Affine:
    """`x·W + b`, packed by oneDNN if that is faster.

    Args:
        weight: W, (d_in, d_out).
        bias: b, (d_out).
        keep: Whether W stays beside its packed form.
    """
    if not PACKED or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return Affine(weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.T)
    return Affine(packed, bias.clone(), weight.clone() if keep else None)


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
