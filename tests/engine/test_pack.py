"""Packs: which runs share a row, which rows a row sees, and how deep each row goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import Run, Site
from service.engine.pack import Trie, fill, pack
from service.engine.run import STAGE

few = settings(derandomize=True, max_examples=40, deadline=None)
paths = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6)


def run(ids: Sequence[int], start: int = 0, **reads: Sequence[int]) -> Run:
    """A run at consecutive positions; `m0=[…]` reads mlp_in of layer 0, `p1=[…]` resid_pre of 1."""
    points = {"p": "resid_pre", "m": "mlp_in", "r": "resid_post"}
    sites = {Site(int(key[1:]), points[key[0]]): rows for key, rows in reads.items()}  # type: ignore[arg-type]
    return Run(ids, range(start, start + len(ids)), sites)


@few
@given(paths)
def test_pack_has_one_row_per_distinct_prefix(ids: list[list[int]]) -> None:
    """A pack has one row per distinct prefix, and each run is a path through its own ids."""
    trie = Trie()
    found = [trie.add(run(tokens)) for tokens in ids]
    prefixes = {tuple(tokens[: i + 1]) for tokens in ids for i in range(len(tokens))}
    assert len(trie) == len(prefixes)
    for tokens, path in zip(ids, found, strict=True):
        assert [trie.tokens[row] for row in path] == tokens
        assert [trie.positions[row] for row in path] == list(range(len(tokens)))


@few
@given(paths)
def test_row_sees_its_ancestors_and_itself(ids: list[list[int]]) -> None:
    """Row i of a run sees exactly the rows 0 … i of that run."""
    laid_out = pack([run(tokens, r0=[0]) for tokens in ids])
    trie = Trie()
    for tokens in ids:
        path = trie.add(run(tokens))
        for i, row in enumerate(path):
            assert set(np.flatnonzero(laid_out.sees[row])) == set(path[: i + 1].tolist())


def test_prefixes_of_a_context_need_2n_plus_1_rows() -> None:
    """n+1 prefixes of one context, each with the query at one position, need 2n+1 rows."""
    n = 6
    runs = [Run([*range(i), 99], [*range(i), n], {}) for i in range(n + 1)]
    assert len(pack(runs).tokens) == 2 * n + 1


@pytest.mark.parametrize(
    ("second", "rows"),
    [
        (Run([5, 6, 7], [0, 1, 2]), 3),
        (Run([5, 6, 8], [0, 1, 2]), 4),
        (Run([5, 6, 7], [0, 1, 3]), 4),
        (Run([5, 6, 7], [1, 2, 3]), 6),
        (Run([6, 7], [1, 2]), 5),
    ],
)
def test_rows_with_another_id_position_or_past_are_not_shared(second: Run, rows: int) -> None:
    """A row with another id, position or past is not shared."""
    assert len(pack([Run([5, 6, 7], [0, 1, 2]), second]).tokens) == rows


def test_row_depth_is_that_of_its_deepest_run() -> None:
    """A row goes as deep as the deepest of the runs that contain it."""
    laid_out = pack([run([1, 2], r0=[1]), run([1, 3], r4=[1]), run([4])])
    assert laid_out.depth.tolist() == [4, 0, 4, -1]


def test_reads_keep_the_order_of_each_run() -> None:
    """Each run's rows are returned in the requested order, repetitions included."""
    laid_out = pack([run([1, 2, 3], m0=[2, 0, 2]), run([1, 5], m0=[1])])
    (first, rows), (second, others) = laid_out.reads[Site(0, "mlp_in")]
    assert (first, rows.tolist(), second, others.tolist()) == (0, [2, 0, 2], 1, [3])


def test_stage_ends_at_the_last_point_that_a_row_needs() -> None:
    """A row goes to the block's end if needed deeper, else to its last point read, else only to its
    keys."""
    laid_out = pack([run([1, 2, 3], p1=[0], m1=[2]), run([1, 9], r2=[1])])
    end, key = STAGE["resid_post"], -1
    assert laid_out.stage(0).tolist() == [end, end, end, end]
    assert laid_out.stage(1).tolist() == [end, key, STAGE["mlp_in"], end]
    assert laid_out.stage(2).tolist() == [key, key, key, end]


@pytest.mark.parametrize(
    ("lengths", "budget", "count"),
    [([4, 4, 4], 12, 3), ([4, 4, 4], 11, 2), ([4, 4, 4], 4, 1), ([9, 1], 4, 1), ([1], 0, 1)],
)
def test_fill_takes_what_fits_and_at_least_one(lengths: list[int], budget: int, count: int) -> None:
    """`fill` takes runs from the first on within the budget, and always at least one."""
    runs = [run(range(100 * i, 100 * i + length)) for i, length in enumerate(lengths)]
    assert fill(runs, budget) == count


def test_fill_counts_shared_rows_once() -> None:
    """Twenty runs that differ only in the last id count 29 rows, not 200."""
    runs = [run([*range(9), 100 + i]) for i in range(20)]
    assert fill(runs, 29) == 20
    assert fill(runs, 28) == 19
