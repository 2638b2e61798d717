"""Blocks with changed weights.

Patched weights exist for one product. Resident weights are never written, because adding an update
and subtracting it again is not bit-exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.activations import HookPoint
from schemas.equivalence_checks import Apply
from service.engine.block import Block, MLPPatch
from service.engine.layers import Affine
from service.engine.route import Carried, Indices, Patching, Product
from service.theory import (
    ImplicitUpdate,
    JointUpdate,
    LowRank,
    OutputUpdate,
    RankOne,
    implicit_update,
    is_finite,
    output_update,
    post_norm_update,
)


def patched_product(layer: Affine, x: Tensor, update: RankOne, apply: Apply) -> Tensor:
    """`x·(W + ΔW) + b` with an update for each row, (rows, d_out).

    Args:
        layer: W and b, in the dtype of x.
        x: (rows, d_in).
        update: ΔW, factors (rows, d_in) and (rows, d_out).
        apply: `materialized` forms W + ΔW and multiplies by it; `factored` adds (x·a) b to x·W.
    """
    if apply == "factored":
        return layer(x) + update.apply(x)
    rows = [_materialized(layer, x[i : i + 1], update[i]) for i in range(len(x))]
    return torch.cat(rows) if rows else layer(x)


def _materialized(layer: Affine, x: Tensor, update: RankOne) -> Tensor:
    """`x·(W + ΔW) + b` with one update for all rows."""
    changed = torch.addcmul(layer.weight, update.input.unsqueeze(-1), update.output.unsqueeze(0))
    return layer.times(x, changed)


def patched_block(
    block: Block, h: Tensor, n: Tensor, update: ImplicitUpdate | JointUpdate, apply: Apply
) -> tuple[Tensor, Tensor]:
    """`n·(W + ΔW) + b` and resid_post with patched weights, (rows, width of W) and (rows, d_model).

    Args:
        block: The block, in the dtype of h.
        h: resid_mid, (rows, d_model).
        n: mlp_in, (rows, d_model).
        update: One update per row, or one joint update for all rows, in the dtype of h.
        apply: As for `patched_product`. It applies to every weight.
    """
    seen: dict[HookPoint, Tensor] = {}
    patch: MLPPatch
    if isinstance(update, ImplicitUpdate):
        patch = _EachRow(update, apply)
    else:
        patch = _AllRows(update, apply)
    block.mlp(h, n, seen.__setitem__, patch)
    return torch.cat([seen[point] for point in block.pre_points], -1), seen["resid_post"]


def second_update(block: Block, bias: Tensor, act: Tensor, out: Tensor) -> OutputUpdate:
    """The change of the second weight, and of the gain of a norm after it, that carries Δh.

    Args:
        block: The block, in the dtype of the runs.
        bias: Δh of each row, (rows, d_model).
        act: mlp_act with context, (rows, d_mlp).
        out: `act·W_out + b`, (rows, d_model).
    """
    norm = block.post_mlp
    if norm is None:
        return output_update(act, bias)
    return post_norm_update(act, out, norm(out), bias, norm.gain, norm.eps)


@dataclass(frozen=True, eq=False)
class _EachRow:
    """One update per row."""

    update: ImplicitUpdate
    apply: Apply

    def pre(self, block: Block, n: Tensor) -> Tensor:
        return patched_product(block.w_in, n, self.update.weight, self.apply)

    def out(self, block: Block, act: Tensor) -> Tensor:
        out = self.update.out
        if out is None:
            return block.out(act)
        y = patched_product(block.w_out, act, out.weight, self.apply)
        return y if block.post_mlp is None else block.post_mlp(y, out.gain)

    def shift(self, resid_post: Tensor) -> Tensor:
        return resid_post + self.update.bias if self.update.out is None else resid_post


@dataclass(frozen=True, eq=False)
class _AllRows:
    """One joint update of both weights for all rows."""

    update: JointUpdate
    apply: Apply

    def pre(self, block: Block, n: Tensor) -> Tensor:
        return self._product(block.w_in, n, self.update.w_in)

    def out(self, block: Block, act: Tensor) -> Tensor:
        return self._product(block.w_out, act, self.update.w_out)

    def shift(self, resid_post: Tensor) -> Tensor:
        return resid_post

    def _product(self, layer: Affine, x: Tensor, update: LowRank) -> Tensor:
        """`x·(W + ΔW) + b` with one ΔW for all rows."""
        if self.apply == "factored":
            return layer(x) + update.apply(x)
        return layer.times(x, layer.weight + update.dense())


class PatchedRows:
    """Rows of several runs, each with the weights of its own run.

    Args:
        block: The block, in the dtype of the runs.
        indices: The indices of the pack.
        patching: The patched rows.
        h: resid_mid of the rows that reach mlp_in, (rows, d_model).
        n: mlp_in of the same rows, (rows, d_model).
    """

    def __init__(
        self, block: Block, indices: Indices, patching: Patching, h: Tensor, n: Tensor
    ) -> None:
        self._at = indices
        self._patching = patching
        to, source = indices[patching.to], indices[patching.source]
        parts = [update[None] for update in patching.fixed]
        if len(to):
            parts.insert(0, implicit_update(n[to], n[source], h[to], h[source], block.w_in))
        self._bias = torch.cat([part.bias for part in parts])
        self._weight = RankOne(
            torch.cat([part.weight.input.to(h.dtype) for part in parts]),
            torch.cat([part.weight.output.to(h.dtype) for part in parts]),
        )
        self.formed = torch.stack([is_finite(part) for part in parts]).all()

    def pre(self, block: Block, n: Tensor) -> Tensor:
        pre = torch.empty(len(n), block.w_in.width, dtype=n.dtype, device=n.device)
        plain = self._at[self._patching.plain]
        pre[plain] = block.w_in(n[plain])
        self._multiply(pre, block.w_in, n, self._weight, self._patching.product)
        return pre

    def out(self, block: Block, act: Tensor) -> Tensor:
        carried = self._patching.carried
        if carried is None:
            return block.out(act)
        y = block.w_out(act)
        update = self._carried(block, carried, act, y)
        self.formed = self.formed & update.is_finite
        update = update.to(act.dtype)
        normed = None if block.post_mlp is None else block.post_mlp(y)
        self._multiply(y, block.w_out, act, update.weight, carried.product)
        if normed is None or block.post_mlp is None or update.gain is None:
            return y
        rows, whose = self._at[carried.rows.rows], self._at[carried.rows.whose]
        return normed.index_copy(0, rows, block.post_mlp(y[rows], update.gain[whose]))

    def _carried(self, block: Block, carried: Carried, act: Tensor, y: Tensor) -> OutputUpdate:
        """The updates of the second weight, from mlp_act and `act·W_out + b` of all rows."""
        parts = [update.out[None] for update in self._patching.fixed if update.out is not None]
        source = self._at[carried.source]
        if len(source):
            bias = self._bias[self._at[carried.shift]]
            parts.insert(0, second_update(block, bias, act[source], y[source]))
        gains = [part.gain for part in parts if part.gain is not None]
        return OutputUpdate(
            RankOne(
                torch.cat([part.weight.input for part in parts]),
                torch.cat([part.weight.output for part in parts]),
            ),
            torch.cat(gains) if gains else None,
        )

    def shift(self, resid_post: Tensor) -> Tensor:
        shifted = self._patching.shifted
        bias = self._bias.to(resid_post.dtype)[self._at[shifted.whose]]
        return resid_post.index_add(0, self._at[shifted.rows], bias)

    def _multiply(
        self, to: Tensor, layer: Affine, x: Tensor, update: RankOne, product: Product
    ) -> None:
        """Write the products of patched rows of x into the same rows of `to`."""
        rows, whose = self._at[product.factored.rows], self._at[product.factored.whose]
        if len(rows):
            to[rows] = patched_product(layer, x[rows], update[whose], "factored")
        for i, place in product.materialized:
            rows = self._at[place]
            to[rows] = _materialized(layer, x[rows], update[i])
