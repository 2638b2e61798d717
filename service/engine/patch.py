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
from service.engine.indices import Indices
from service.engine.layers import Affine
from service.engine.patching import Changes, Patching, Product, Vectors
from service.theory import (
    ImplicitUpdate,
    LowRank,
    OutputUpdate,
    RankOne,
    StaticUpdate,
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
    block: Block, h: Tensor, n: Tensor, update: ImplicitUpdate | StaticUpdate, apply: Apply
) -> tuple[Tensor, Tensor]:
    """`n·(W + ΔW) + b` and resid_post with patched weights, (rows, width of W) and (rows, d_model).

    Args:
        block: The block, in the dtype of h.
        h: resid_mid, (rows, d_model).
        n: mlp_in, (rows, d_model).
        update: One update per row, or one update for all rows, in the dtype of h.
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
    """One update for all rows."""

    update: StaticUpdate
    apply: Apply

    def pre(self, block: Block, n: Tensor) -> Tensor:
        return self._product(block.w_in, n, self.update.w_in)

    def out(self, block: Block, act: Tensor) -> Tensor:
        y = self._product(block.w_out, act, self.update.w_out)
        return y if block.post_mlp is None else block.post_mlp(y, self.update.gain)

    def shift(self, resid_post: Tensor) -> Tensor:
        return resid_post if self.update.bias is None else resid_post + self.update.bias

    def _product(self, layer: Affine, x: Tensor, update: LowRank | None) -> Tensor:
        """`x·(W + ΔW) + b` with one ΔW for all rows."""
        if update is None:
            return layer(x)
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
        self._following, self._given = patching.following, patching.given
        self.formed: Tensor | None = None
        if self._following is not None:
            to, source = indices[self._following.to], indices[self._following.source]
            update = implicit_update(n[to], n[source], h[to], h[source], block.w_in)
            self._weight, self._bias = update.weight.to(h.dtype), update.bias
            self.formed = is_finite(update)

    def pre(self, block: Block, n: Tensor) -> Tensor:
        pre = block.w_in(n)
        if self._following is not None:
            self._multiply(pre, block.w_in, n, self._weight, self._following.product)
        if self._given is not None:
            self._change(pre, block.w_in, n, self._given.w_in)
        return pre

    def out(self, block: Block, act: Tensor) -> Tensor:
        y = block.w_out(act)
        gains: list[tuple[Tensor, Tensor]] = []
        if self._following is not None and (carried := self._following.carried) is not None:
            source, bias = self._at[carried.source], self._bias[self._at[carried.shift]]
            update = second_update(block, bias, act[source], y[source])
            self.formed = (
                update.is_finite if self.formed is None else self.formed & update.is_finite
            )
            update = update.to(act.dtype)
            self._multiply(y, block.w_out, act, update.weight, carried.product)
            if update.gain is not None:
                rows, whose = self._at[carried.rows.rows], self._at[carried.rows.whose]
                gains.append((rows, update.gain[whose]))
        if self._given is not None:
            self._change(y, block.w_out, act, self._given.w_out)
            gains += self._vectors(self._given.gain, act.dtype)
        if block.post_mlp is None:
            return y
        out = block.post_mlp(y)
        for rows, gain in gains:
            out.index_copy_(0, rows, block.post_mlp(y[rows], gain))
        return out

    def shift(self, resid_post: Tensor) -> Tensor:
        if self._following is not None:
            rows, whose = (self._at[place] for place in self._following.shifted)
            resid_post = resid_post.index_add(0, rows, self._bias.to(resid_post.dtype)[whose])
        if self._given is not None:
            for rows, bias in self._vectors(self._given.bias, resid_post.dtype):
                resid_post = resid_post.index_add(0, rows, bias)
        return resid_post

    def _vectors(self, given: Vectors, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """The rows with a given vector and the vector of each, (rows, d_model); none: no pair."""
        if not given.values:
            return []
        values = torch.stack(given.values).to(dtype)
        return [(self._at[given.rows.rows], values[self._at[given.rows.whose]])]

    def _multiply(
        self, to: Tensor, layer: Affine, x: Tensor, update: RankOne, product: Product
    ) -> None:
        """Change the products of patched rows of x in `to`, an update for each run."""
        rows, whose = self._at[product.factored.rows], self._at[product.factored.whose]
        if len(rows):
            to.index_add_(0, rows, update[whose].apply(x[rows]))
        for i, place in product.materialized:
            rows = self._at[place]
            to[rows] = _materialized(layer, x[rows], update[i])

    def _change(self, to: Tensor, layer: Affine, x: Tensor, changes: Changes) -> None:
        """Change the products of patched rows of x in `to` by given changes."""
        if changes.factors:
            rows, whose = self._at[changes.rows.rows], self._at[changes.rows.whose]
            inputs = torch.cat([one.input for one in changes.factors]).to(x.dtype)
            outputs = torch.cat([one.output for one in changes.factors]).to(x.dtype)
            shares = x[rows] @ inputs.T
            if len(changes.factors) > 1:
                # The factors of all changes are multiplied together, so each row keeps its own.
                shares = shares * (whose[:, None] == self._at[changes.owner])
            to.index_add_(0, rows, shares @ outputs)
        for one, place in changes.dense:
            rows = self._at[place]
            to[rows] = layer.times(x[rows], layer.weight + one.to(x.dtype).dense())
