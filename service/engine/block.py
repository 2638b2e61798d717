"""A block: its layers, and the arithmetic of its MLP, with the resident weights or with others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from schemas.activations import HookPoint
from service.engine.layers import Affine, Norm

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
