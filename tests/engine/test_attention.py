"""Attention: its parts, joined, equal one softmax over all that a row sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from service.engine import Block
from service.engine.attention import FUSED, SLICE, Before, attention
from service.engine.rotary import Table
from tests.analysis.subjects import Subject
from tests.engine.made import relative

BOUNDS = [(torch.float64, 1e-14), (torch.float32, 2e-6)]
NAMES = ("gpt2", "llama", "qwen3", "gemma3", "neox-partial")


@pytest.fixture(params=[True, False] if FUSED else [False], ids=lambda fused: f"fused={fused}")
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Torch's fused attention of a CPU, and the plain formula."""
    monkeypatch.setattr("service.engine.attention.FUSED", request.param)
    return bool(request.param)


def block_of(subject: Subject, dtype: torch.dtype, layer: int = 0) -> Block:
    """A block of a model, in a dtype."""
    return subject.model.blocks[layer].to(dtype)


def table_of(block: Block, positions: Tensor, dtype: torch.dtype) -> Table | None:
    """Cosine and sine at positions."""
    return None if block.rotary is None else Table(*block.rotary.turns(positions, dtype))


def rows_of(block: Block, count: int, seed: int = 0) -> Tensor:
    """Random rows of ln_1_out."""
    generator = torch.Generator().manual_seed(seed)
    weight = block.queries.weight
    return torch.randn(count, weight.shape[0], generator=generator, dtype=torch.float64).to(
        weight.dtype
    )


def direct(block: Block, normed: Tensor, sees: Tensor, table: Table | None) -> Tensor:
    """Attention's output by a softmax over all keys, head by head, in float64."""
    block, normed = block.to(torch.float64), normed.double()
    q, (k, v) = block.queries(normed), block.keys_values(normed).chunk(2, 1)
    heads = []
    for head in range(block.n_heads):
        groups = block.n_heads * block.d_head // k.shape[1]
        one, other = head * block.d_head, head // groups * block.d_head
        query = q[:, one : one + block.d_head]
        key, value = (part[:, other : other + block.d_head] for part in (k, v))
        if block.query_norm is not None and block.key_norm is not None:
            query, key = block.query_norm(query), block.key_norm(key)
        if table is not None:
            query, key = (table.rotate(part[None])[0] for part in (query, key))
        scores = (query @ key.T * block.scaling).masked_fill(~sees, -torch.inf)
        heads.append(scores.softmax(-1) @ value)
    out = block.attn_out(torch.cat(heads, 1))
    return out if block.post_attn is None else block.post_attn(out)


def bias_of(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a mask is true, −∞ elsewhere."""
    return torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, -torch.inf)


def causal(count: int, window: int | None = None) -> Tensor:
    """The mask of one sequence: each row sees the rows before it, within a window."""
    rows = torch.arange(count)
    distance = rows[:, None] - rows
    return (distance >= 0) & (distance < (window or count))


def joined(
    block: Block, normed: Tensor, sees: Tensor, cuts: Sequence[int], dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    """Attention of the rows after the last cut, to itself and to known rows cut into parts.

    The second time, only every other row is a query.
    """
    count, first = len(normed), cuts[-1]
    positions = torch.arange(count)
    table = table_of(block, positions, dtype)
    whole = attention(block, normed, bias_of(sees, dtype)[None], table=table)
    layers = torch.stack([whole.keys, whole.values])
    for step in (1, 2):
        known = []
        rows = torch.arange(first, count)[::step]
        for start, stop in zip((0, *cuts), cuts, strict=False):
            seeing = sees[rows][:, start:stop]
            some = seeing.any(1)
            # One part is seen by the rows that see some of it, the others have blind rows.
            at = torch.arange(len(rows)) if start else some.nonzero()[:, 0]
            if not len(at):
                continue
            seeing = seeing[at]
            blind = ~seeing.any(1, keepdim=True)
            known.append(
                Before(
                    layers[:, :, start:stop],
                    None if len(at) == len(rows) else at,
                    None if seeing.all() else bias_of(seeing, dtype),
                    blind if blind.any() else None,
                )
            )
        found = attention(
            block,
            normed[first:],
            bias_of(sees[first:, first:], dtype)[None],
            None if step == 1 else torch.arange(0, count - first, step),
            known,
            None if table is None else table.rows(torch.arange(first, count)),
        )
        assert relative(found.keys, whole.keys[:, first:]) <= 1e-5
        yield slice(first, count, step), found.out


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("window", [None, 4])
def test_joined_parts_equal_one_softmax(
    name: str,
    window: int | None,
    dtype: torch.dtype,
    bound: float,
    fused: bool,
    variant_of: Callable[[str], Subject],
) -> None:
    """Rows that attend to themselves and to known rows in three parts, some of which a window
    hides, have the values of one softmax over all, fused or not, with grouped and rotated heads."""
    block = block_of(variant_of(name), dtype)
    normed, sees = rows_of(block, 17), causal(17, window)
    table = table_of(block, torch.arange(17), torch.float64)
    truth = direct(block, normed, sees, table)
    # Cosine and sine are of float32, and the table is rounded to the dtype.
    bound = bound if block.rotary is None or dtype == torch.float32 else 4 * bound
    table = table_of(block, torch.arange(17), dtype)
    assert (
        relative(attention(block, normed, bias_of(sees, dtype)[None], table=table).out, truth)
        <= bound
    )
    for rows, out in joined(block, normed, sees, (5, 6, 11), dtype):
        assert relative(out, truth[rows]) <= bound


@pytest.mark.parametrize("name", NAMES)
def test_groups_do_not_see_each_other(
    name: str, fused: bool, variant_of: Callable[[str], Subject]
) -> None:
    """Rows of several groups have the values of each group alone, and equally many rows of each
    may be queries."""
    block, width = block_of(variant_of(name), torch.float64), 6
    normed = rows_of(block, 3 * width)
    table = table_of(block, torch.arange(3 * width), torch.float64)
    masks = [causal(width, window) for window in (None, 2, 3)]
    sees = torch.zeros(3 * width, 3 * width, dtype=torch.bool)
    for i, mask in enumerate(masks):
        sees[width * i : width * (i + 1), width * i : width * (i + 1)] = mask
    bias = torch.stack([bias_of(mask, torch.float64) for mask in masks])
    truth = direct(block, normed, sees, table)
    for queries in (None, torch.tensor([1, 5, 6, 7, 14, 17])):
        out = attention(block, normed, bias, queries, table=table).out
        assert relative(out, truth if queries is None else truth[queries]) <= 1e-14


@pytest.mark.parametrize("count", [SLICE - 1, SLICE, SLICE + 1, 2 * SLICE + 7])
def test_slices_equal_one_softmax(
    count: int, fused: bool, variant_of: Callable[[str], Subject]
) -> None:
    """Attention in slices of rows, with and without known rows, equals one softmax."""
    block = block_of(variant_of("llama"), torch.float64)
    normed, sees = rows_of(block, count + 9), causal(count + 9)
    table = table_of(block, torch.arange(count + 9), torch.float64)
    truth = direct(block, normed, sees, table)
    whole = attention(block, normed, bias_of(sees, torch.float64)[None], table=table)
    assert relative(whole.out, truth) <= 1e-14
    for rows, out in joined(block, normed, sees, (4, 9), torch.float64):
        assert relative(out, truth[rows]) <= 1e-14


def test_large_scores_do_not_overflow(fused: bool, variant_of: Callable[[str], Subject]) -> None:
    """Parts whose scores differ by thousands are joined without overflow."""
    block = replace(block_of(variant_of("gpt2"), torch.float64), scaling=1e4)
    normed, sees = rows_of(block, 12), causal(12)
    truth = direct(block, normed, sees, None)
    for rows, out in joined(block, normed, sees, (4, 8), torch.float64):
        assert relative(out, truth[rows]) <= 1e-10
