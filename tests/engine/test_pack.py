"""Packs: which runs share a row, which rows a row sees, and how deep each row goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import Run, Site
from service.engine.pack import Filling, Pack, pack
from service.engine.prefixes import Prefixes
from service.engine.run import STAGE

few = settings(derandomize=True, max_examples=40, deadline=None)
paths = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6)


def run(ids: Sequence[int], start: int = 0, **reads: Sequence[int]) -> Run:
    """A run at consecutive positions; `m0=[…]` reads mlp_in of layer 0, `p1=[…]` resid_pre of 1."""
    points = {"p": "resid_pre", "m": "mlp_in", "r": "resid_post"}
    sites = {Site(int(key[1:]), points[key[0]]): rows for key, rows in reads.items()}  # type: ignore[arg-type]
    return Run(ids, range(start, start + len(ids)), sites)


def filled(runs: Sequence[Run], budget: float = np.inf) -> Filling:
    """A pack that is filled with runs until one does not fit."""
    filling = Filling(budget)
    for placed in Prefixes().place(runs):
        if not filling.add(placed):
            break
    return filling


def whole(ids: Sequence[Sequence[int]]) -> list[Run]:
    """Runs that read all their rows."""
    return [run(tokens, r0=range(len(tokens))) for tokens in ids]


def rows_of(laid_out: Pack) -> list[list[int]]:
    """The pack's rows of each run that reads all its rows."""
    return [rows.tolist() for _, rows in laid_out.reads[Site(0, "resid_post")]]


@few
@given(paths, st.booleans())
def test_pack_has_one_row_per_distinct_prefix(ids: list[list[int]], static: bool) -> None:
    """A pack has one row per distinct prefix, and each run is a path through its own ids."""
    filling = filled(whole(ids))
    laid_out = pack(filling, static=static)
    prefixes = {tuple(tokens[: i + 1]) for tokens in ids for i in range(len(tokens))}
    assert filling.rows == len(prefixes)
    assert len({row for path in rows_of(laid_out) for row in path}) == len(prefixes)
    assert static or len(laid_out.tokens) == len(prefixes)
    for tokens, path in zip(ids, rows_of(laid_out), strict=True):
        assert laid_out.tokens[path].tolist() == tokens
        assert laid_out.positions[path].tolist() == list(range(len(tokens)))


@few
@given(paths, st.booleans())
def test_row_sees_its_ancestors_and_itself(ids: list[list[int]], static: bool) -> None:
    """Row i of a run sees exactly the rows 0 … i of that run; a row of padding sees itself."""
    laid_out = pack(filled(whole(ids)), static=static)
    width = laid_out.sees.shape[1]
    padding = set(range(len(laid_out.tokens)))
    for path in rows_of(laid_out):
        group = path[0] // width
        for i, row in enumerate(path):
            seen = group * width + np.flatnonzero(laid_out.sees[group, row - group * width])
            assert seen.tolist() == sorted(path[: i + 1])
        padding -= set(path)
    for row in padding:
        group, place = divmod(row, width)
        assert np.flatnonzero(laid_out.sees[group, place]).tolist() == [place]


def test_prefixes_of_a_context_need_2n_plus_1_rows() -> None:
    """n+1 prefixes of one context, each with the query at one position, need 2n+1 rows."""
    n = 6
    runs = [Run([*range(i), 99], [*range(i), n], {Site(0, "mlp_in"): [i]}) for i in range(n + 1)]
    assert filled(runs).rows == 2 * n + 1


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
    assert filled([Run([5, 6, 7], [0, 1, 2]), second]).rows == rows


def test_row_depth_is_that_of_its_deepest_run() -> None:
    """A row goes as deep as the deepest of the runs that contain it."""
    laid_out = pack(filled([run([1, 2], r0=[1]), run([1, 3], r4=[1]), run([4])]))
    assert laid_out.depth.tolist() == [4, 0, 4, -1]


def test_reads_keep_the_order_of_each_run() -> None:
    """Each run's rows are returned in the requested order, repetitions included."""
    laid_out = pack(filled([run([1, 2, 3], m0=[2, 0, 2]), run([1, 5], m0=[1])]))
    (first, rows), (second, others) = laid_out.reads[Site(0, "mlp_in")]
    assert (first, rows.tolist(), second, others.tolist()) == (0, [2, 0, 2], 1, [3])


def test_stage_ends_at_the_last_point_that_a_row_needs() -> None:
    """A row goes to the block's end if needed deeper, else to its last point read, else only to its
    keys."""
    laid_out = pack(filled([run([1, 2, 3], p1=[0], m1=[2]), run([1, 9], r2=[1])]))
    end, key = STAGE["resid_post"], -1
    assert laid_out.stage(0).tolist() == [end, end, end, end]
    assert laid_out.stage(1).tolist() == [end, key, STAGE["mlp_in"], end]
    assert laid_out.stage(2).tolist() == [key, key, key, end]


@pytest.mark.parametrize(
    ("lengths", "budget", "count"),
    [([4, 4, 4], 12, 3), ([4, 4, 4], 11, 2), ([4, 4, 4], 4, 1), ([9, 1], 4, 1), ([1], 0, 1)],
)
def test_filling_takes_what_fits_and_at_least_one(
    lengths: list[int], budget: int, count: int
) -> None:
    """A pack takes runs in their order within the budget, and always at least one."""
    runs = [run(range(100 * i, 100 * i + length)) for i, length in enumerate(lengths)]
    assert len(filled(runs, budget).placed) == count


def test_filling_counts_shared_rows_once() -> None:
    """Twenty runs that differ only in the last id count 29 rows, not 200."""
    runs = [run([*range(9), 100 + i], m0=[9]) for i in range(20)]
    assert len(filled(runs, 29).placed) == 20
    assert len(filled(runs, 28).placed) == 19


def test_run_that_does_not_fit_leaves_the_pack_as_it_was() -> None:
    """A run that is refused adds neither rows nor reads."""
    filling = filled([run([1, 2], m0=[1]), run([1, 3, 4, 5], m2=[3])], 4)
    assert (filling.rows, len(filling.placed)) == (2, 1)
    assert pack(filling).depth.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("lengths", "groups", "width"),
    [
        ([20], 1, 24),
        ([20, 20], 2, 24),
        ([20, 4, 4, 16], 2, 24),
        ([20] * 5, 6, 24),
        ([64, 1], 2, 64),
        ([65], 1, 80),
        ([161], 1, 192),
    ],
)
def test_static_shape_is_padded_to_steps(lengths: list[int], groups: int, width: int) -> None:
    """Tries lie side by side in groups as wide as the widest, and small ones fill the gaps."""
    ids = [range(1000 * i, 1000 * i + length) for i, length in enumerate(lengths)]
    laid_out = pack(filled([run(one, m0=[len(one) - 1]) for one in ids]), static=True)
    assert laid_out.static
    assert laid_out.sees.shape == (groups, width, width)
