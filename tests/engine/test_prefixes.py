"""Known prefixes: what is found again is what was computed, and never more than was granted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.engine import Model
from service.engine.prefixes import LONGEST, Prefixes
from service.engine.run import Run, Site
from service.engine.walk import forward
from tests.engine.made import worst

HEADS, D_HEAD = 2, 3
ROW_BYTES = 2 * HEADS * D_HEAD * 4
"""Of a layer."""


def run_of(ids: Sequence[int], read: int | None = None, layer: int = 0) -> Run:
    """A run that reads one row, the last one where none is named."""
    row = len(ids) - 1 if read is None else read
    return Run(ids, range(len(ids)), {Site(layer, "mlp_in"): [row]})


def computed(ids: Sequence[int], layers: int = 1) -> Tensor:
    """Keys and values that tell which path of ids each row has, and the layer."""
    paths = [float(hash(tuple(ids[: i + 1])) % 99991) for i in range(len(ids))]
    rows = torch.tensor(paths)[None, None, None, :, None].expand(layers, 2, HEADS, -1, D_HEAD)
    return rows + torch.arange(layers)[:, None, None, None, None] / 64


def keep(prefixes: Prefixes, run: Run) -> int:
    """Compute a run and keep it, as the walk does: how many of its rows were known."""
    known = prefixes.find(run)
    count = sum(part.rows for part in known)
    every = computed(run.tokens, run.depth + 1)

    def layers(start: int, stop: int) -> Tensor | None:
        return every[..., start:stop, :].clone() if start >= count else None

    prefixes.keep(run, known, layers)
    return count


def found(prefixes: Prefixes, run: Run) -> Tensor:
    """Layers and rows that are known of a run, (layers, 2, heads, rows, d_head)."""
    parts = [
        part.stretch.layers[: run.depth + 1, ..., : part.rows, :] for part in prefixes.find(run)
    ]
    return torch.cat(parts, -2) if parts else torch.empty(run.depth + 1, 2, HEADS, 0, D_HEAD)


ids = st.lists(st.integers(0, 1), min_size=1, max_size=12)
asked = st.lists(st.tuples(ids, st.integers(0, 11), st.integers(0, 2)), min_size=1, max_size=14)


@settings(max_examples=150, deadline=None)
@given(asked, st.integers(0, 60))
def test_what_is_known_is_what_was_computed(
    runs: list[tuple[list[int], int, int]], rows: int
) -> None:
    """Whatever came before, in whatever order and however little may be kept: rows that are found
    are those of this very path, all before the first read, in every layer; bytes are counted."""
    prefixes = Prefixes(rows * ROW_BYTES, torch.float32)
    for tokens, read, layer in runs:
        run = run_of(tokens, min(read, len(tokens) - 1), layer)
        known = found(prefixes, run)
        assert known.shape[-2] <= min(read, len(tokens) - 1)
        assert torch.equal(known, computed(tokens, layer + 1)[..., : known.shape[-2], :])
        keep(prefixes, run)
        kept = list(prefixes._by_use)
        assert prefixes.bytes == sum(stretch.size for stretch in kept) <= prefixes.budget
        assert all(stretch.parent is None or stretch.parent in kept for stretch in kept)


@pytest.mark.parametrize("length", [1, 15, 16, 17, LONGEST, LONGEST + 1, 3 * LONGEST - 1])
def test_every_row_of_a_context_is_known_to_the_next_query(length: int) -> None:
    """Not only whole pieces: with room enough, a second query computes its own row alone."""
    prefixes = Prefixes(1 << 24, torch.float32)
    context = list(range(length))
    assert [keep(prefixes, run_of([*context, query])) for query in (7, 8, 7, 9)] == [
        0,
        *[length] * 3,
    ]
    assert prefixes.hits == 3 * length
    assert prefixes.misses == length + 4


def test_a_query_becomes_context() -> None:
    """What was read once is known where a longer context goes on from it."""
    prefixes = Prefixes(1 << 20, torch.float32)
    keep(prefixes, run_of([1, 2, 3, 4]))
    assert keep(prefixes, run_of([1, 2, 3, 4, 5, 6])) == 4


def test_paths_part_in_the_middle_of_a_stretch() -> None:
    """A beginning that two contexts share is kept once, and both go on from it."""
    prefixes = Prefixes(1 << 20, torch.float32)
    keep(prefixes, run_of([1, 2, 3, 4, 5, 9]))
    assert keep(prefixes, run_of([1, 2, 3, 7, 8, 9])) == 3
    assert prefixes.bytes == (6 + 3) * ROW_BYTES
    assert keep(prefixes, run_of([1, 2, 3, 4, 5, 8])) == 5
    assert keep(prefixes, run_of([1, 2, 3, 7, 8, 8])) == 5


def test_rows_with_fewer_layers_are_computed_again_and_then_have_all() -> None:
    """A run that reads an early layer leaves rows that a deeper run cannot use, but replaces."""
    prefixes = Prefixes(1 << 20, torch.float32)
    keep(prefixes, run_of([1, 2, 3], layer=0))
    assert keep(prefixes, run_of([1, 2, 4], layer=2)) == 0
    assert keep(prefixes, run_of([1, 2, 5], layer=2)) == 2
    assert keep(prefixes, run_of([1, 2, 5], layer=0)) == 2


def test_the_least_recently_used_goes_first() -> None:
    """Of three contexts where two fit, the one that was used last stays."""
    prefixes = Prefixes(8 * ROW_BYTES, torch.float32)
    first, second, third = [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]
    keep(prefixes, run_of(first))
    keep(prefixes, run_of(second))
    assert keep(prefixes, run_of(first)) == 3
    keep(prefixes, run_of(third))
    assert keep(prefixes, run_of(first)) == 3
    assert keep(prefixes, run_of(second)) == 0


@pytest.mark.parametrize("budget", [0, ROW_BYTES - 1])
def test_no_room_keeps_nothing(budget: int) -> None:
    """A budget of 0 switches it off; one below a row holds nothing either."""
    prefixes = Prefixes(budget, torch.float32)
    keep(prefixes, run_of([1, 2, 3]))
    assert keep(prefixes, run_of([1, 2, 3])) == 0
    assert prefixes.bytes == 0


@pytest.mark.parametrize("lengths", [(40, 40), (40, 13), (13, 40)])
def test_runs_that_know_different_parts_of_one_stretch(tiny: Model, lengths: Sequence[int]) -> None:
    """Two runs of a pack on one kept context, one on all of it and one on its beginning, read what
    they read alone and cold."""
    context = [int(i) for i in torch.arange(40) * 7 % 250]
    prefixes = Prefixes(1 << 24, tiny.dtype)
    deepest = tiny.n_layers - 1
    forward(tiny, [run_of([*context, 3], layer=deepest)], prefixes=prefixes)
    runs = [run_of([*context[:length], 5], layer=deepest) for length in lengths]
    warm = forward(tiny, runs, prefixes=prefixes)
    assert prefixes.hits == sum(lengths)
    for run, read in zip(runs, warm, strict=True):
        (cold,) = forward(tiny, [run])
        assert worst(read, cold) <= 5e-6
