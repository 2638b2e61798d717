"""Blocks with changed weights.

Patched weights exist for one product. Resident weights are never written, because adding an update
and subtracting it again is not bit-exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from schemas.activations import HookPoint
from schemas.equivalence_checks import Apply
from service.engine.block import Block, MLPPatch
from service.engine.layers import Affine
from service.engine.pack import Index, Pack
from service.engine.run import Fixed, Follow
from service.theory import ImplicitUpdate, JointUpdate, LowRank, RankOne, implicit_update


def patched_mlp_pre(
    block: Block, n: Tensor, weight: RankOne, apply: Apply, who: Tensor | None = None
) -> Tensor:
    """`n·(W + ΔW) + b`, (rows, d_mlp).

    Args:
        block: The block, in the dtype of n.
        n: mlp_in, (rows, d_model).
        weight: The updates ΔW, (updates, ...).
        apply: `materialized` forms W + ΔW and multiplies by it; `factored` adds (n·a) b to n·W.
        who: Index of each row's update, (rows,); None: row i has update i.
    """
    whose = torch.arange(len(n), device=n.device) if who is None else who
    if apply == "factored":
        return block.w_in(n) + RankOne(weight.input[whose], weight.output[whose]).apply(n)
    pre = torch.empty(len(n), weight.output.shape[-1], dtype=n.dtype, device=n.device)
    for i in torch.unique(whose).tolist():
        rows = whose == i
        changed = torch.addcmul(
            block.w_in.weight, weight.input[i].unsqueeze(-1), weight.output[i].unsqueeze(0)
        )
        pre[rows] = torch.addmm(block.w_in.bias, n[rows], changed)
    return pre


def patched_block(
    block: Block, h: Tensor, update: ImplicitUpdate | JointUpdate, apply: Apply
) -> tuple[Tensor, Tensor]:
    """mlp_pre and resid_post with patched weights, (rows, d_mlp) and (rows, d_model).

    Args:
        block: The block, in the dtype of h.
        h: resid_mid, (rows, d_model).
        update: One update per row, or one joint update for all rows, in the dtype of h.
        apply: As for `patched_mlp_pre`. It applies to both weights of a joint update.
    """
    seen: dict[HookPoint, Tensor] = {}
    patch: MLPPatch
    if isinstance(update, ImplicitUpdate):
        patch = _EachRow(update, apply)
    else:
        patch = _AllRows(update, apply)
    block.mlp(h, block.ln_2(h), seen.__setitem__, patch)
    return seen["mlp_pre"], seen["resid_post"]


@dataclass(frozen=True, eq=False)
class _EachRow:
    """One update per row."""

    update: ImplicitUpdate
    apply: Apply

    def mlp_pre(self, block: Block, n: Tensor) -> Tensor:
        return patched_mlp_pre(block, n, self.update.weight, self.apply)

    def mlp_out(self, block: Block, act: Tensor) -> Tensor:
        return block.w_out(act)

    def shift(self, resid_post: Tensor) -> Tensor:
        return resid_post + self.update.bias


@dataclass(frozen=True, eq=False)
class _AllRows:
    """One joint update of both weights for all rows."""

    update: JointUpdate
    apply: Apply

    def mlp_pre(self, block: Block, n: Tensor) -> Tensor:
        return self._product(block.w_in, n, self.update.w_in)

    def mlp_out(self, block: Block, act: Tensor) -> Tensor:
        return self._product(block.w_out, act, self.update.w_out)

    def shift(self, resid_post: Tensor) -> Tensor:
        return resid_post

    def _product(self, layer: Affine, x: Tensor, update: LowRank) -> Tensor:
        """`x·(W + ΔW) + b` with one ΔW for all rows."""
        if self.apply == "factored":
            return layer(x) + update.apply(x)
        return torch.addmm(layer.bias, x, layer.weight + update.dense())


@dataclass(frozen=True, eq=False)
class _PatchedRows:
    """Rows of several runs, each with the weights of its own run.

    Args:
        update: ΔW and Δh, stacked, (updates, ...).
        applies: How each update is applied.
        who: Index of each row's update; -1: the resident weights, (rows,).
    """

    update: ImplicitUpdate
    applies: tuple[Apply, ...]
    who: Tensor

    def mlp_pre(self, block: Block, n: Tensor) -> Tensor:
        who = self.who
        pre = torch.empty(len(n), block.w_in.weight.shape[1], dtype=n.dtype, device=n.device)
        pre[who < 0] = block.w_in(n[who < 0])
        for apply in dict.fromkeys(self.applies):
            alike = torch.tensor([kind == apply for kind in self.applies], device=n.device)
            rows = (who >= 0) & alike[who]
            pre[rows] = patched_mlp_pre(block, n[rows], self.update.weight, apply, who[rows])
        return pre

    def mlp_out(self, block: Block, act: Tensor) -> Tensor:
        return block.w_out(act)

    def shift(self, resid_post: Tensor) -> Tensor:
        patched = self.who >= 0
        bias = self.update.bias[self.who[patched]]
        return resid_post.index_put((patched,), bias, accumulate=True)


def layer_patch(
    pack: Pack, layer: int, block: Block, rows: Index, left: Index, h: Tensor, n: Tensor
) -> MLPPatch | None:
    """Form the patches of a block; None if it has none.

    Args:
        pack: The pack.
        layer: Index of the block.
        block: The block, in the dtype of the runs.
        rows: The pack's rows that reach mlp_in, ascending.
        left: Those of them that pass through the MLP.
        h: resid_mid of `rows`, (rows, d_model).
        n: mlp_in of `rows`, (rows, d_model).
    """
    here = [(i, run) for i, run in enumerate(pack.patched) if layer <= run.depth]
    following = [(i, run) for i, run in here if isinstance(run.patch, Follow)]
    fixed = [
        (i, run.patch.updates[layer])
        for i, run in here
        if isinstance(run.patch, Fixed) and layer in run.patch.updates
    ]
    owners = [i for i, _ in (*following, *fixed)]
    if not owners:
        return None
    parts = [
        ImplicitUpdate(
            RankOne(update.weight.input[None], update.weight.output[None]), update.bias[None]
        )
        for _, update in fixed
    ]
    if following:
        to = _places(rows, [run.row for _, run in following], h.device)
        source = _places(rows, [run.source_row for _, run in following], h.device)
        formed = implicit_update(n[to], n[source], h[to], h[source], block.w_in.weight)
        parts.insert(0, formed)
    update = ImplicitUpdate(
        RankOne(
            torch.cat([part.weight.input.to(h.dtype) for part in parts]),
            torch.cat([part.weight.output.to(h.dtype) for part in parts]),
        ),
        torch.cat([part.bias.to(h.dtype) for part in parts]),
    )
    applies = tuple(pack.patched[owner].patch.apply for owner in owners)
    # The last entry is for rows of no patched run, whose owner is -1.
    of_run = np.full(len(pack.patched) + 1, -1)
    of_run[owners] = np.arange(len(owners))
    return _PatchedRows(update, applies, torch.from_numpy(of_run[pack.owner[left]]).to(h.device))


def _places(rows: Index, wanted: Sequence[int], device: torch.device) -> Tensor:
    """Indices of some of the pack's rows among those that reach a block."""
    return torch.from_numpy(rows.searchsorted(wanted)).to(device)
