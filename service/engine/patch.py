"""A block with changed weights, beside the stream.

The patched weights exist for one product and the resident ones are never written: an update that is
edited in and subtracted back is not bit-exact.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from service.engine.families import Block
from service.theory import RankOne

Apply = Literal["factored", "materialized"]


def patched_mlp_pre(block: Block, n: Tensor, weight: RankOne, apply: Apply) -> Tensor:
    """`n·(W + ΔW) + b`, each row with its own ΔW, (rows, d_mlp).

    Args:
        block: Whose first MLP layer, in the dtype of n.
        n: mlp_in, (rows, d_model).
        weight: ΔW, one a row.
        apply: `materialized` forms W + ΔW and multiplies by it; `factored` adds (n·a) b to n·W.
    """
    if apply == "factored":
        return block.w_in(n) + weight.apply(n)
    rows = [n[i] @ (block.w_in.weight + weight[i].dense()) for i in range(len(n))]
    return torch.stack(rows) + block.w_in.bias


def patched_resid_post(
    block: Block, h: Tensor, weight: RankOne, bias: Tensor, apply: Apply
) -> Tensor:
    """The block's output with `W + ΔW` and Δh, each row with its own, (rows, d_model).

    Args:
        block: Whose MLP, in the dtype of h.
        h: resid_mid, (rows, d_model).
        weight: ΔW, one a row.
        bias: Δh, added at the block's output, (rows, d_model).
        apply: As for `patched_mlp_pre`.
    """
    pre = patched_mlp_pre(block, block.ln_2(h), weight, apply)
    return h + block.w_out(block.act(pre)) + bias
