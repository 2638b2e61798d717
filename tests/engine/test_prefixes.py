"""The tree of rows: what is kept between packs, what is cached, and that nothing else stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import Follow, Model, Run, Site
from service.engine.pack import Filling, pack
from service.engine.prefixes import Prefixes
from service.engine.question import distinct_rows
from service.engine.segments import Placed, Segment, known_rows, shared
from service.engine.walk import forward, walk
from tests.engine.made import worst

ROW_BYTES = 2 * 32 * 4
"""Bytes of the keys and values of one row and layer of the tiny model."""
PLENTY = 1 << 24


def run_of(ids: Sequence[int], read: int | None = None, layer: int = 0) -> Run:
    """A run that reads one row, by default its last."""
    row = len(ids) - 1 if read is None else read
    return Run(ids, range(len(ids)), {Site(layer, "mlp_in"): [row]})


def asked(model: Model, tree: Prefixes, *runs: Run) -> int:
    """Compute runs in one pack; return the number of rows that were known."""
    before = tree.hits
    forward(model, runs, prefixes=tree)
    return tree.hits - before


def packs(model: Model, tree: Prefixes, runs: Sequence[Run], budget: int) -> list[int]:
    """Compute runs in packs within a row budget; return the rows that each pack computed."""
    waiting, computed = tree.place(runs), []
    while waiting:
        filling = Filling(budget)
        count = next((i for i, one in enumerate(waiting) if not filling.add(one)), len(waiting))
        walk(model, filling, tree)
        computed.append(filling.rows)
        tree.release(waiting[:count])
        waiting = waiting[count:]
    return computed


def segments(tree: Prefixes) -> Iterator[Segment]:
    """Every segment of a tree."""
    levels = list(tree._roots.values())
    while levels:
        for segment in levels.pop().values():
            yield segment
            levels.append(segment.children)


def is_sound(tree: Prefixes) -> bool:
    """Whether the tree counts what it holds, and holds only what is cached or waited for."""
    every = list(segments(tree))
    holding = {one for one in every if one.layers is not None}
    free = sum(one.size for one in holding if not one.waiting)
    return (
        holding == set(tree._kept)
        and tree.bytes == sum(one.size for one in holding)
        and free <= tree.budget
        and all((one.known > 0) == (one in holding) for one in every)
        and all(one.waiting or one.children or one in holding for one in every)
    )


def is_empty(tree: Prefixes) -> bool:
    """Whether nothing is left of the runs."""
    return not list(segments(tree)) and not tree._kept and tree.bytes == 0


@pytest.mark.parametrize("length", [1, 15, 16, 17, 55])
def test_whole_context_is_cached_for_the_next_query(tiny: Model, length: int) -> None:
    """With enough room, a second query after the same context computes only its own row."""
    tree, context = Prefixes(PLENTY), list(range(1, 1 + length))
    known = [asked(tiny, tree, run_of([*context, query])) for query in (107, 108, 107, 109)]
    assert known == [0, *[length] * 3]
    assert tree.misses == length + 4


def test_leaves_are_not_kept(tiny: Model) -> None:
    """Rows from the first read on are computed again: nothing but the trunk is cached."""
    tree = Prefixes(PLENTY)
    forward(tiny, [run_of([1, 2, 3, 4, 5], read=2)], prefixes=tree)
    assert tree.bytes == 2 * ROW_BYTES
    assert asked(tiny, tree, run_of([1, 2, 3, 4, 5, 6])) == 2


def test_trunk_says_how_many_rows_are_kept(tiny: Model) -> None:
    """A run may declare a longer or a shorter trunk than the rows before its first read."""
    for trunk in (0, 2, 3, 5):
        tree = Prefixes(PLENTY)
        reads = {Site(0, "mlp_in"): [3]}
        forward(tiny, [Run([1, 2, 3, 4, 5], range(5), reads, trunk=trunk)], prefixes=tree)
        assert tree.bytes == trunk * ROW_BYTES
        assert asked(tiny, tree, run_of([1, 2, 3, 4, 5, 6])) == trunk


def test_shared_prefix_is_cached_once(tiny: Model) -> None:
    """A prefix that two contexts share is cached once, and both continue from it."""
    tree = Prefixes(PLENTY)
    forward(tiny, [run_of([1, 2, 3, 4, 5, 9])], prefixes=tree)
    assert asked(tiny, tree, run_of([1, 2, 3, 7, 8, 9])) == 3
    assert tree.bytes == (5 + 2) * ROW_BYTES
    assert asked(tiny, tree, run_of([1, 2, 3, 4, 5, 8])) == 5
    assert asked(tiny, tree, run_of([1, 2, 3, 7, 8, 8])) == 5


def test_shorter_context_uses_the_beginning_of_a_cached_one(tiny: Model) -> None:
    """The trunk of a shorter context is part of the segment of a longer one, whichever came
    first."""
    for lengths in ((6, 3), (3, 6)):
        tree = Prefixes(PLENTY)
        for length in lengths:
            forward(tiny, [run_of([*range(1, 1 + length), 99])], prefixes=tree)
        assert tree.bytes == 6 * ROW_BYTES
        assert asked(tiny, tree, run_of([*range(1, 7), 98]), run_of([1, 2, 3, 98])) == 6


def test_longest_trunk_is_one_segment() -> None:
    """Runs that are placed together divide the longest trunk nowhere, whatever their order."""
    tree = Prefixes()
    short, long = tree.place([run_of([1, 2, 50]), run_of([1, 2, 3, 4, 51])])
    assert [stop for _, stop in long.path] == [4, 1]
    assert short.path[0] == (long.path[0].segment, 2)


def test_deeper_run_replaces_rows_with_fewer_layers(tiny: Model) -> None:
    """A deeper run cannot use rows with fewer layers, and replaces them; a shallower one does not
    replace what is deeper."""
    tree = Prefixes(PLENTY)
    forward(tiny, [run_of([1, 2, 3])], prefixes=tree)
    assert asked(tiny, tree, run_of([1, 2, 4], layer=2)) == 0
    assert tree.bytes == 2 * 3 * ROW_BYTES
    assert asked(tiny, tree, run_of([1, 2, 5], layer=2)) == 2
    assert asked(tiny, tree, run_of([1, 2, 5])) == 2
    forward(tiny, [run_of([1, 2, 6], read=0)], prefixes=tree)
    assert asked(tiny, tree, run_of([1, 2, 5], layer=2)) == 2
    assert tree.bytes == 2 * 3 * ROW_BYTES


def test_rows_are_added_to_a_segment_in_the_company_of_deeper_runs(tiny: Model) -> None:
    """A half-known segment is completed in its own layers, also when another run goes deeper."""
    tree = Prefixes(0)
    long, short, deep = run_of([*range(1, 9), 50]), run_of([1, 2, 3, 51]), run_of([70, 71], layer=2)
    again = run_of([*range(1, 9), 52])
    placed = tree.place([short, long, deep, again])
    for first, stop in ((0, 1), (1, 3), (3, 4)):
        filling = Filling()
        for one in placed[first:stop]:
            filling.add(one)
        walk(tiny, filling, tree)
        tree.release(placed[first:stop])
    assert tree.misses == (3 + 1) + (5 + 1 + 2) + 1
    assert is_empty(tree)


def test_kept_rows_are_those_with_all_layers(tiny: Model) -> None:
    """Where a deep run leaves a trunk before a shallow one, only the rows that went deep are kept,
    in all their layers."""
    tree, context = Prefixes(PLENTY), list(range(1, 9))
    deep, shallow = run_of([*context[:3], 50], layer=2), run_of([*context, 51])
    forward(tiny, [shallow, deep], prefixes=tree)
    again = run_of([*context, 52], layer=2)
    # Rows with fewer layers do not continue those with all, whoever shares their pack.
    forward(tiny, [run_of([*context, 53]), run_of([60], layer=2)], prefixes=tree)
    assert asked(tiny, tree, again) == 3
    # What a run computes again, because it reads it, does not shorten what is kept.
    forward(tiny, [run_of(context[:4], read=0, layer=2)], prefixes=tree)
    assert asked(tiny, tree, again) == 8
    for run in (deep, shallow, again):
        (warm,) = forward(tiny, [run], prefixes=tree)
        assert worst(warm, forward(tiny, [run])[0]) <= 5e-6


def test_rows_come_after_all_that_they_see(tiny: Model) -> None:
    """Ancestors come first in a pack, also those that an earlier run knows and a later one does
    not."""
    tree = Prefixes(PLENTY)
    forward(tiny, [run_of([1, 2, 3, 50])], prefixes=tree)
    filling = Filling()
    for one in tree.place([run_of([1, 2, 3, 51]), run_of([1, 2, 3, 52], layer=2)]):
        assert filling.add(one)
    laid_out = pack(filling)
    assert laid_out.tokens.tolist() == [1, 2, 3, 51, 52]
    assert not np.triu(laid_out.sees[0], 1).any()


def test_least_recently_used_prefix_is_evicted(tiny: Model) -> None:
    """When only two of three contexts fit, the least recently used is evicted."""
    tree = Prefixes(7 * ROW_BYTES)
    first, second, third = ([*[i] * 3, 9] for i in (1, 2, 3))
    for context, known in ((first, 0), (second, 0), (first, 3), (third, 0), (first, 3)):
        assert asked(tiny, tree, run_of(context)) == known
        assert is_sound(tree)
    assert asked(tiny, tree, run_of(second)) == 0


def test_end_of_a_path_is_evicted_before_its_beginning(tiny: Model) -> None:
    """A use of a path leaves its beginning more recent than its end."""
    tree = Prefixes(6 * ROW_BYTES)
    forward(tiny, [run_of([1, 2, 3, 9])], prefixes=tree)
    forward(tiny, [run_of([1, 2, 3, 4, 5, 9])], prefixes=tree)
    forward(tiny, [run_of([7, 8, 9])], prefixes=tree)
    assert asked(tiny, tree, run_of([1, 2, 3, 4, 5, 9])) == 3


@pytest.mark.parametrize("budget", [0, ROW_BYTES - 1])
def test_budget_below_a_row_caches_nothing(tiny: Model, budget: int) -> None:
    """A budget of 0 or of less than a row caches nothing."""
    tree = Prefixes(budget)
    assert [asked(tiny, tree, run_of([1, 2, 3])) for _ in range(2)] == [0, 0]
    assert is_empty(tree)


def test_prefix_beyond_the_budget_drives_out_no_other(tiny: Model) -> None:
    """A trunk wider than the budget is dropped, and what was cached before stays, also while runs
    wait for that trunk."""
    tree = Prefixes(5 * ROW_BYTES)
    forward(tiny, [run_of([1, 2, 3, 9])], prefixes=tree)
    wide = [run_of([*range(10, 20), query]) for query in (1, 2, 3)]
    assert packs(tiny, tree, wide, budget=11) == [11, 2]
    assert tree.bytes == 3 * ROW_BYTES
    assert asked(tiny, tree, run_of([1, 2, 3, 8])) == 3


def test_short_segments_are_not_cached(tiny: Model) -> None:
    """A segment with fewer rows than `least` is handed on but not cached."""
    tree = Prefixes(PLENTY, least=4)
    short, long = [1, 2, 3], [11, 12, 13, 14]
    runs = [run_of([*context, query]) for context in (short, long) for query in (8, 9)]
    assert packs(tiny, tree, runs, budget=1) == [4, 1, 5, 1]
    assert [asked(tiny, tree, run) for run in runs] == [0, 0, 4, 4]


def test_other_dtypes_are_not_cached(tiny: Model) -> None:
    """Rows in another dtype than the model's are handed from pack to pack, but not cached, and
    share nothing with rows of the model's dtype."""
    tree, site = Prefixes(PLENTY), Site(0, "mlp_in")
    narrow = run_of([1, 2, 3, 4])
    wide = [Run([1, 2, 3, query], range(4), {site: [3]}, torch.float64) for query in (5, 6)]
    forward(tiny, [narrow], prefixes=tree)
    assert packs(tiny, tree, wide, budget=1) == [4, 1]
    assert tree.bytes == 3 * ROW_BYTES
    assert asked(tiny, tree, wide[0]) == 0


def test_trunk_passes_from_pack_to_pack_without_a_cache(tiny: Model) -> None:
    """With budget 0 and packs of any size, the rows of a trunk are computed once, and nothing is
    left in the end."""
    context = list(range(1, 31))
    after = [run_of([*context, query], layer=2) for query in range(40, 52)]
    before = [run_of([*context[:i], 60], layer=2) for i in range(0, 31, 3)]
    for runs in (after, before, [*after, *before]):
        for budget in (1, 7, 40, 1000):
            tree = Prefixes(0)
            computed = packs(tiny, tree, runs, budget)
            assert sum(computed) == tree.misses == distinct_rows(runs)
            assert is_empty(tree)


def test_waiting_runs_keep_what_they_pass_through(tiny: Model) -> None:
    """While a run waits, neither the budget nor `clear` drops its trunk."""
    tree = Prefixes(4 * ROW_BYTES)
    waiting = tree.place([run_of([1, 2, 3, 8])])
    forward(tiny, [run_of([1, 2, 3, 9])], prefixes=tree)
    for i in range(10, 30, 5):
        forward(tiny, [run_of([i, i + 1, i + 2, i + 3, 9])], prefixes=tree)
        assert tree.clear() == 4 * ROW_BYTES
    assert known_rows(waiting) == 3
    tree.release(waiting)
    assert tree.bytes == 3 * ROW_BYTES
    assert tree.clear() == 3 * ROW_BYTES
    assert is_empty(tree)


ids = st.lists(st.integers(1, 2), min_size=1, max_size=9)
some_runs = st.builds(
    lambda tokens, read, trunk: Run(
        tokens,
        range(len(tokens)),
        {Site(0, "mlp_in"): [min(read, len(tokens) - 1)]},
        trunk=None if trunk is None else min(trunk, len(tokens)),
    ),
    ids,
    st.integers(0, 9),
    st.none() | st.integers(0, 9),
)
following = st.builds(
    lambda run, source: Run(
        run.tokens, run.positions, run.reads, patch=Follow(source, len(source.tokens) - 1, 0)
    ),
    some_runs,
    some_runs,
)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.lists(st.lists(some_runs | following, max_size=5), max_size=4))
def test_released_runs_leave_nothing(batches: list[list[Run]]) -> None:
    """Runs that are released in any order, computed or not, leave no segment in the tree, and a
    path has the rows of its run."""
    tree = Prefixes(0)
    batches_placed = [tree.place(runs) for runs in batches]
    placed: list[Placed] = [one for batch in batches_placed for one in batch]
    for one in placed:
        rows = np.concatenate([segment.rows[:stop] for segment, stop in one.path])
        assert np.array_equal(rows, one.run.rows)
    for one in placed[::2]:
        tree.release([one])
    tree.release(placed[1::2])
    assert is_empty(tree)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(ids, st.integers(0, 8), st.integers(0, 2)), min_size=1, max_size=8),
    st.integers(0, 20),
)
def test_cached_rows_equal_computed_rows(
    tiny: Model, runs: list[tuple[list[int], int, int]], rows: int
) -> None:
    """After any sequence of runs, cached keys and values are those of the run's own path, come
    before its first read, have all its layers, and stay within the budget."""
    tree = Prefixes(rows * ROW_BYTES)
    for tokens, read, layer in runs:
        one = run_of(tokens, min(read, len(tokens) - 1), layer)
        forward(tiny, [one], prefixes=tree)
        assert is_sound(tree)
        (placed,) = tree.place([one])
        fresh = Prefixes(PLENTY)
        whole = Run(tokens, range(len(tokens)), one.reads, trunk=len(tokens))
        forward(tiny, [whole], prefixes=fresh)
        (all_known,) = [part.segment.layers for part in fresh.place([whole])[0].path]
        start = 0
        assert all_known is not None
        for part, before in placed.needed:
            known = part.segment.known_to(one.depth, min(part.stop, before))
            if known:
                assert start + known <= one.first_read
                assert part.segment.layers is not None
                found = part.segment.layers[: layer + 1, :, :, :known]
                expected = all_known[: layer + 1, :, :, start : start + known]
                torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
            start += part.stop
        tree.release([placed])


@pytest.mark.parametrize("lengths", [(40, 40), (40, 13), (13, 40)])
def test_runs_use_parts_of_one_cached_prefix(tiny: Model, lengths: Sequence[int]) -> None:
    """Two runs of a pack that use different lengths of one cached context read the same as alone
    and uncached."""
    context = [int(i) for i in torch.arange(40) * 7 % 250]
    tree, deepest = Prefixes(PLENTY), tiny.n_layers - 1
    forward(tiny, [run_of([*context, 3], layer=deepest)], prefixes=tree)
    runs = [run_of([*context[:length], 5], layer=deepest) for length in lengths]
    assert asked(tiny, tree, *runs) == max(lengths)
    for run, read in zip(runs, forward(tiny, runs, prefixes=tree), strict=True):
        assert worst(read, forward(tiny, [run])[0]) <= 5e-6


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [([], [1], 0), ([1], [1], 1), ([1, 2], [1], 1), ([1, 2], [1, 3], 1), ([1, 2], [3, 2], 0)],
)
def test_shared_counts_equal_first_rows(one: list[int], other: list[int], count: int) -> None:
    """`shared` is the length of the common beginning."""
    assert shared(np.array(one, np.int64), np.array(other, np.int64)) == count


def test_first_read_row_is_the_first_of_negative_and_positive_indices(tiny: Model) -> None:
    """A row that is read is computed, though a cached beginning holds it, in either numbering."""
    rows = [-1, 2]
    run = Run(range(10, 20), range(10), {Site(0, "mlp_in"): rows}, trunk=9)
    assert run.first_read == 2
    tree = Prefixes(1 << 20)
    forward(tiny, [Run(range(10, 20), range(10), {Site(0, "mlp_in"): [9]})], prefixes=tree)
    (read,) = forward(tiny, [run], prefixes=tree)
    assert worst(read, forward(tiny, [run])[0]) <= 5e-6
