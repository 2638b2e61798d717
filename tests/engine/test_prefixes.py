"""The prefix cache: it returns what was computed, and stays within its budget."""

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
"""Bytes of the keys and values of one row and layer."""


def run_of(ids: Sequence[int], read: int | None = None, layer: int = 0) -> Run:
    """A run that reads one row, by default its last."""
    row = len(ids) - 1 if read is None else read
    return Run(ids, range(len(ids)), {Site(layer, "mlp_in"): [row]})


def computed(ids: Sequence[int], layers: int = 1) -> Tensor:
    """Keys and values that encode the layer and each row's path of ids."""
    paths = [float(hash(tuple(ids[: i + 1])) % 99991) for i in range(len(ids))]
    rows = torch.tensor(paths)[None, None, None, :, None].expand(layers, 2, HEADS, -1, D_HEAD)
    return rows + torch.arange(layers)[:, None, None, None, None] / 64


def keep(prefixes: Prefixes, run: Run) -> int:
    """Compute a run and cache it, as the walk does; return the number of its cached rows."""
    known = prefixes.find(run)
    count = sum(part.rows for part in known)
    every = computed(run.tokens, run.depth + 1)

    def layers(start: int, stop: int) -> Tensor | None:
        return every[..., start:stop, :].clone() if start >= count else None

    prefixes.keep(run, known, layers)
    return count


def found(prefixes: Prefixes, run: Run) -> Tensor:
    """The cached layers and rows of a run, (layers, 2, heads, rows, d_head)."""
    parts = [part.node.layers[: run.depth + 1, ..., : part.rows, :] for part in prefixes.find(run)]
    return torch.cat(parts, -2) if parts else torch.empty(run.depth + 1, 2, HEADS, 0, D_HEAD)


ids = st.lists(st.integers(0, 1), min_size=1, max_size=12)
asked = st.lists(st.tuples(ids, st.integers(0, 11), st.integers(0, 2)), min_size=1, max_size=14)


@settings(max_examples=150, deadline=None)
@given(asked, st.integers(0, 60))
def test_cached_rows_equal_computed_rows(runs: list[tuple[list[int], int, int]], rows: int) -> None:
    """After any sequence of runs, cached rows belong to the run's own path, precede the first read
    and have every layer."""
    prefixes = Prefixes(rows * ROW_BYTES, torch.float32)
    for tokens, read, layer in runs:
        run = run_of(tokens, min(read, len(tokens) - 1), layer)
        known = found(prefixes, run)
        assert known.shape[-2] <= min(read, len(tokens) - 1)
        assert torch.equal(known, computed(tokens, layer + 1)[..., : known.shape[-2], :])
        keep(prefixes, run)
        kept = list(prefixes._by_use)
        assert prefixes.bytes == sum(node.size for node in kept) <= prefixes.budget
        assert all(node.parent is None or node.parent in kept for node in kept)


@pytest.mark.parametrize("length", [1, 15, 16, 17, LONGEST, LONGEST + 1, 3 * LONGEST - 1])
def test_whole_context_is_cached_for_the_next_query(length: int) -> None:
    """With enough room, a second query after the same context computes only its own row."""
    prefixes = Prefixes(1 << 24, torch.float32)
    context = list(range(length))
    assert [keep(prefixes, run_of([*context, query])) for query in (7, 8, 7, 9)] == [
        0,
        *[length] * 3,
    ]
    assert prefixes.hits == 3 * length
    assert prefixes.misses == length + 4


def test_query_rows_are_cached_as_context() -> None:
    """Rows of a query are cached for a longer context that continues it."""
    prefixes = Prefixes(1 << 20, torch.float32)
    keep(prefixes, run_of([1, 2, 3, 4]))
    assert keep(prefixes, run_of([1, 2, 3, 4, 5, 6])) == 4


def test_shared_prefix_is_cached_once() -> None:
    """A prefix that two contexts share is cached once, and both continue from it."""
    prefixes = Prefixes(1 << 20, torch.float32)
    keep(prefixes, run_of([1, 2, 3, 4, 5, 9]))
    assert keep(prefixes, run_of([1, 2, 3, 7, 8, 9])) == 3
    assert prefixes.bytes == (6 + 3) * ROW_BYTES
    assert keep(prefixes, run_of([1, 2, 3, 4, 5, 8])) == 5
    assert keep(prefixes, run_of([1, 2, 3, 7, 8, 8])) == 5


def test_deeper_run_replaces_rows_with_fewer_layers() -> None:
    """A deeper run cannot use rows with fewer layers, and replaces them."""
    prefixes = Prefixes(1 << 20, torch.float32)
    keep(prefixes, run_of([1, 2, 3], layer=0))
    assert keep(prefixes, run_of([1, 2, 4], layer=2)) == 0
    assert keep(prefixes, run_of([1, 2, 5], layer=2)) == 2
    assert keep(prefixes, run_of([1, 2, 5], layer=0)) == 2


def test_least_recently_used_prefix_is_evicted() -> None:
    """When only two of three contexts fit, the least recently used is evicted."""
    prefixes = Prefixes(8 * ROW_BYTES, torch.float32)
    first, second, third = [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]
    keep(prefixes, run_of(first))
    keep(prefixes, run_of(second))
    assert keep(prefixes, run_of(first)) == 3
    keep(prefixes, run_of(third))
    assert keep(prefixes, run_of(first)) == 3
    assert keep(prefixes, run_of(second)) == 0


@pytest.mark.parametrize("budget", [0, ROW_BYTES - 1])
def test_budget_below_a_row_caches_nothing(budget: int) -> None:
    """A budget of 0 or of less than a row caches nothing."""
    prefixes = Prefixes(budget, torch.float32)
    keep(prefixes, run_of([1, 2, 3]))
    assert keep(prefixes, run_of([1, 2, 3])) == 0
    assert prefixes.bytes == 0


@pytest.mark.parametrize("lengths", [(40, 40), (40, 13), (13, 40)])
def test_runs_use_parts_of_one_cached_prefix(tiny: Model, lengths: Sequence[int]) -> None:
    """Two runs of a pack that use different lengths of one cached context read the same as alone
    and uncached."""
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
