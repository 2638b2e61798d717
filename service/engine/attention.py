"""Attention of a pack's rows to each other and to known rows, which are read in place.

Keys and values of known rows are not copied in front of the others. Attention to each part is
computed separately, and the parts are joined by the logarithms of their sums of exponentials: if
two parts have the outputs o₁ and o₂ and the logarithms l₁ and l₂, the whole has the output
o₁ + σ(l₂ − l₁)·(o₂ − o₁) and the logarithm ln(e^l₁ + e^l₂).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.block import Block
from service.engine.rotary import Table

SLICE = 128
"""Rows of attention that are computed at a time on a CPU."""
FUSED = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
"""Whether torch's fused attention on a CPU also returns these logarithms."""


class Before(NamedTuple):
    """Known rows that some queries see.

    Args:
        layers: Keys and values of a layer, (2, kv_heads, known rows, d_head), keys rotated.
        queries: Indices of the queries; None: all.
        bias: 0 where a query sees a known row and −∞ elsewhere, (queries, known rows); None: each
            sees all.
        blind: Whether a query sees no known row, bool, (queries, 1); None: each sees some.
    """

    layers: Tensor
    queries: Tensor | None
    bias: Tensor | None
    blind: Tensor | None


class Attended(NamedTuple):
    """Attention's output, and the keys and values of the pack's rows.

    Args:
        out: (queries, d_model).
        keys, values: (kv_heads, rows, d_head).
    """

    out: Tensor
    keys: Tensor
    values: Tensor


def attention(
    block: Block,
    normed: Tensor,
    bias: Tensor,
    queries: Tensor | None = None,
    known: Sequence[Before] = (),
    table: Table | None = None,
) -> Attended:
    """Compute the attention of a block.

    Args:
        block: The block.
        normed: ln_1_out, (rows, d_model). The rows are those of the groups, one group after the
            other.
        bias: 0 where a row sees another of its group and −∞ elsewhere, (groups, width, width).
        queries: Indices of the rows that become queries, as many of each group; None: all.
        known: Known rows; one group only.
        table: Cosine and sine of the rows; None: no rotation.
    """
    groups, width = bias.shape[:2]
    k, v = block.keys_values(normed).chunk(2, dim=1)
    q = block.queries(normed if queries is None else normed[queries])
    q, k, v = (part.view(len(part), -1, block.d_head) for part in (q, k, v))
    if block.query_norm is not None and block.key_norm is not None:
        q, k = block.query_norm(q), block.key_norm(k)
    q, k, v = (part.transpose(0, 1) for part in (q, k, v))
    if table is not None:
        q, k = table.rows(queries).rotate(q), table.rotate(k)
    if queries is not None:
        bias = bias.reshape(-1, width)[queries].view(groups, -1, width)
    # (groups, heads, rows, d_head)
    asked, keys, values = (_grouped(part, groups) for part in (q, k, v))
    out = _mixed(block, asked, keys, values, bias, queries is None, known)
    attended = block.attn_out(out.permute(0, 2, 1, 3).reshape(-1, block.queries.width))
    if block.post_attn is not None:
        attended = block.post_attn(attended)
    return Attended(attended, k, v)


def _grouped(heads: Tensor, groups: int) -> Tensor:
    """Heads (heads, rows, d_head) by group: (groups, heads, width, d_head)."""
    return heads.reshape(len(heads), groups, -1, heads.shape[-1]).transpose(0, 1)


def _mixed(
    block: Block,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    all_ask: bool,
    known: Sequence[Before],
) -> Tensor:
    """The mixed values of each query, (groups, heads, queries, d_head)."""
    count = bias.shape[1]
    slices = [(0, count)]
    if q.device.type == "cpu" and all_ask and len(q) == 1:
        slices = [(start, min(start + SLICE, count)) for start in range(0, count, SLICE)]
    parts = []
    for start, stop in slices:
        # No row sees a later row, so a slice of the rows needs no keys after the slice.
        seen = stop if all_ask else k.shape[2]
        own = q, k, v, bias[:, None]
        if len(slices) > 1:
            own = (
                q[:, :, start:stop],
                k[:, :, :seen],
                v[:, :, :seen],
                bias[:, None, start:stop, :seen],
            )
        if not known and not (FUSED and q.device.type == "cpu"):
            parts.append((_fused(*own, block.scaling), q))
        else:
            parts.append(_part(*own, block.scaling))
    out = torch.cat([part for part, _ in parts], 2) if len(parts) > 1 else parts[0][0]
    if not known:
        return out
    sums = torch.cat([part for _, part in parts], 2) if len(parts) > 1 else parts[0][1]
    for before in known:
        at = before.queries
        asking = q if at is None else q[:, :, at]
        mask = None if before.bias is None else before.bias[None, None]
        more, more_sums = _part(
            asking, before.layers[None, 0], before.layers[None, 1], mask, block.scaling
        )
        if before.blind is not None:
            more = more.masked_fill(before.blind, 0.0)
            more_sums = more_sums.masked_fill(before.blind[:, 0], -torch.inf)
        some, some_sums = (out, sums) if at is None else (out[:, :, at], sums[:, :, at])
        weight = torch.sigmoid(more_sums - some_sums).unsqueeze(-1).to(out.dtype)
        joined, joined_sums = torch.lerp(some, more, weight), torch.logaddexp(some_sums, more_sums)
        if at is None:
            out, sums = joined, joined_sums
        else:
            out = out.index_copy(2, at, joined)
            sums = sums.index_copy(2, at, joined_sums)
    return out


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float) -> Tensor:
    # With a mask and grouped heads, sdpa has no fused kernel on a GPU.
    if (sharing := q.shape[1] // k.shape[1]) > 1:
        k, v = (part.repeat_interleave(sharing, 1) for part in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scaling)


def _part(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """The mixed values, (…, queries, d_head), and the logarithms of the sums, (…, queries)."""
    if FUSED and q.device.type == "cpu":
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        found: tuple[Tensor, Tensor] = fused(q, k, v, attn_mask=bias, scale=scaling)
        return found
    # Grouped heads share keys: (…, kv_heads, heads of one key · queries, d_head).
    shape = q.shape
    grouped = q.reshape(len(q), k.shape[1], -1, *q.shape[2:])
    # Half precision would round the sums' logarithms, and so the weights, by a percent and more.
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (grouped @ k.unsqueeze(2).transpose(-1, -2)).to(wide) * scaling
    if bias is not None:
        scores = scores + bias.unsqueeze(2)
    sums = torch.logsumexp(scores, -1)
    mixed = torch.exp(scores - sums.unsqueeze(-1)).to(v.dtype) @ v.unsqueeze(2)
    return mixed.reshape(shape), sums.reshape(shape[:-1])
