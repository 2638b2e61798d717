"""Blocks with changed weights.

The patched weights exist for one product and the resident ones are never written: an update that
is edited in and subtracted back is not bit-exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.engine.families import Affine, Block
from service.engine.pack import Index, PatchedRun
from service.engine.run import Apply, Fixed, Follow
from service.theory import ImplicitUpdate, JointUpdate, LowRank, RankOne, implicit_update


def patched_mlp_pre(
    block: Block, n: Tensor, weight: RankOne, apply: Apply, who: Tensor | None = None
) -> Tensor:
    """`n·(W + ΔW) + b`, (rows, d_mlp).

    Args:
        block: Whose first MLP layer, in the dtype of n.
        n: mlp_in, (rows, d_model).
        weight: The updates ΔW, (updates, ...).
        apply: `materialized` forms W + ΔW and multiplies by it; `factored` adds (n·a) b to n·W.
        who: Which update each row has, (rows,); None where row i has update i.
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
        block: Whose MLP, in the dtype of h.
        h: resid_mid, (rows, d_model).
        update: One for each row, or one joint update for all of them, in the dtype of h.
        apply: As for `patched_mlp_pre`; it goes for both weights of a joint update.
    """
    n = block.ln_2(h)
    if isinstance(update, ImplicitUpdate):
        pre = patched_mlp_pre(block, n, update.weight, apply)
        return pre, h + block.w_out(block.act(pre)) + update.bias
    pre = _jointly(block.w_in, n, update.w_in, apply)
    return pre, h + _jointly(block.w_out, block.act(pre), update.w_out, apply)


def _jointly(layer: Affine, x: Tensor, update: LowRank, apply: Apply) -> Tensor:
    """`x·(W + ΔW) + b` with one ΔW for all rows."""
    if apply == "factored":
        return layer(x) + update.apply(x)
    return torch.addmm(layer.bias, x, layer.weight + update.dense())


@dataclass(frozen=True, eq=False)
class LayerPatch:
    """The patches that one block has in one pack.

    Args:
        update: ΔW and Δh of each patched run, stacked, (updates, ...).
        applies: How each is applied.
        of_run: The update of each patched run of the pack, by index; -1: none here.
    """

    update: ImplicitUpdate
    applies: tuple[Apply, ...]
    of_run: tuple[int, ...]

    def mlp_pre(self, block: Block, n: Tensor, owner: Index) -> Tensor:
        """mlp_pre of every row, each with its own run's weights, (rows, d_mlp).

        Args:
            block: The block, in the dtype of n.
            n: mlp_in, (rows, d_model).
            owner: The patched run that each row is of, -1: none, (rows,).
        """
        who = self._who(owner, n.device)
        pre = torch.empty(len(n), block.w_in.weight.shape[1], dtype=n.dtype, device=n.device)
        pre[who < 0] = block.w_in(n[who < 0])
        for apply in dict.fromkeys(self.applies):
            alike = torch.tensor([kind == apply for kind in self.applies], device=n.device)
            rows = (who >= 0) & alike[who]
            pre[rows] = patched_mlp_pre(block, n[rows], self.update.weight, apply, who[rows])
        return pre

    def shift(self, resid_post: Tensor, owner: Index) -> Tensor:
        """The block's output with Δh on patched rows, (rows, d_model)."""
        who = self._who(owner, resid_post.device)
        patched = who >= 0
        return resid_post.index_put((patched,), self.update.bias[who[patched]], accumulate=True)

    def _who(self, owner: Index, device: torch.device) -> Tensor:
        of_run = torch.tensor([*self.of_run, -1], device=device)
        return of_run[torch.from_numpy(owner).to(device)]


def layer_patch(
    patched: Sequence[PatchedRun], layer: int, block: Block, rows: Index, h: Tensor, n: Tensor
) -> LayerPatch | None:
    """The patches of a block, formed from the rows that are in it, or None.

    Args:
        patched: The patched runs of the pack.
        layer: Which block.
        block: It, in the dtype of the runs.
        rows: The pack's rows that are in it, ascending.
        h: Their resid_mid, (rows, d_model).
        n: Their mlp_in, (rows, d_model).
    """
    here = [(i, run) for i, run in enumerate(patched) if layer <= run.depth]
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
    of_run = {owner: i for i, owner in enumerate(owners)}
    return LayerPatch(
        update,
        tuple(patched[owner].patch.apply for owner in owners),
        tuple(of_run.get(i, -1) for i in range(len(patched))),
    )


def _places(rows: Index, wanted: Sequence[int], device: torch.device) -> Tensor:
    """Where some of the pack's rows are among those in a block."""
    return torch.from_numpy(rows.searchsorted(wanted)).to(device)
