"""A block: its layers, and the arithmetic of its MLP, with the resident weights or with others.

    h  = r + post_attn(attn(pre_attn(r)))    resid_mid
    n  = pre_mlp(h), parallel: pre_mlp(r)    mlp_in
    p  = n·W + b                             mlp_pre; gated: [mlp_pre | mlp_pre_linear]
    φ  = act(p), gated: act(p_gate) ⊙ p_up   mlp_act
    r' = h + post_mlp(φ·W_out + b_out)       resid_post

The first weights of a gated MLP stand side by side, W = [W_gate | W_up]: they have one input, so
their update has rank 1 together. `post_attn` and `post_mlp` are Gemma's norms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from schemas.activations import HookPoint
from service.engine.layers import Affine, Norm
from service.engine.rotary import Rotary

Note = Callable[[HookPoint, Tensor], None]
"""Receives each hook point's vectors as the block computes them."""


class MLPPatch(Protocol):
    """Changed weights of one block's MLP."""

    def pre(self, block: Block, n: Tensor) -> Tensor:
        """`n·(W + ΔW) + b` of rows of mlp_in, (rows, d_model) to (rows, width of W)."""

    def out(self, block: Block, act: Tensor) -> Tensor:
        """mlp_out of rows of mlp_act, (rows, d_mlp) to (rows, d_model)."""

    def shift(self, resid_post: Tensor) -> Tensor:
        """The block's output with Δh, (rows, d_model)."""


@dataclass(frozen=True)
class Block:
    """One pre-norm transformer block.

    Args:
        pre_attn: The norm before attention.
        queries: Attention's queries, (d_model, heads·d_head).
        keys_values: Attention's keys and values side by side, (d_model, 2·kv_heads·d_head).
        attn_out: Attention's output projection, (heads·d_head, d_model).
        pre_mlp: The norm before the MLP.
        w_in: The MLP's first weights side by side, (d_model, d_mlp or 2·d_mlp). ΔW changes them.
        w_out: The MLP's second weight, (d_mlp, d_model).
        activation: The MLP's activation function.
        n_heads: Number of attention heads.
        scaling: Factor of the attention scores.
        gated: Whether the MLP is gated.
        parallel: Whether the MLP reads the stream before attention.
        rotary: Rotation of queries and keys; None: none.
        window: Number of positions that a row sees, its own included; None: no limit.
        query_norm, key_norm: Norms of queries and keys in each head, (d_head); None: no norm.
        post_attn, post_mlp: Norms of the outputs of attention and the MLP; None: no norm.
    """

    pre_attn: Norm
    queries: Affine
    keys_values: Affine
    attn_out: Affine
    pre_mlp: Norm
    w_in: Affine
    w_out: Affine
    activation: Callable[[Tensor], Tensor]
    n_heads: int
    scaling: float
    gated: bool = False
    parallel: bool = False
    rotary: Rotary | None = None
    window: int | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    post_attn: Norm | None = None
    post_mlp: Norm | None = None

    @property
    def d_head(self) -> int:
        """Width of an attention head."""
        return self.queries.width // self.n_heads

    @property
    def pre_points(self) -> tuple[HookPoint, ...]:
        """The hook points whose vectors side by side are `n·W + b`."""
        return ("mlp_pre", "mlp_pre_linear") if self.gated else ("mlp_pre",)

    def mlp(self, h: Tensor, n: Tensor, note: Note, patch: MLPPatch | None = None) -> Tensor:
        """The second half of the block, from mlp_in to resid_post.

        Args:
            h: resid_mid, (rows, d_model).
            n: mlp_in, (rows, d_model).
            note: Receives the hook points from mlp_pre to resid_post.
            patch: Changed weights; None: the resident ones.
        """
        pre = self.w_in(n) if patch is None else patch.pre(self, n)
        parts = pre.chunk(len(self.pre_points), -1)
        for point, part in zip(self.pre_points, parts, strict=True):
            note(point, part)
        act = self.activation(parts[0])
        if self.gated:
            act = act * parts[1]
        note("mlp_act", act)
        out = self.out(act) if patch is None else patch.out(self, act)
        note("mlp_out", out)
        post = h + out if patch is None else patch.shift(h + out)
        note("resid_post", post)
        return post

    def out(self, act: Tensor) -> Tensor:
        """mlp_out of rows of mlp_act, (rows, d_mlp) to (rows, d_model)."""
        out = self.w_out(act)
        return out if self.post_mlp is None else self.post_mlp(out)

    def to(self, dtype: torch.dtype) -> Block:
        """The block in another dtype, for one use: the casts do not stay resident."""
        if self.w_in.dtype == dtype:
            return self
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        weights: dict[str, Any] = {
            name: part.to(dtype) for name, part in parts.items() if isinstance(part, Norm | Affine)
        }
        return replace(self, **weights)
