"""Static shapes: a pack of several padded groups gives the answers of its exact rows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.activations import HookPoint
from service.engine import Activations, Follow, Model, Run, Site
from service.engine.graphs import Graphs
from service.engine.pack import Filling, pack
from service.engine.prefixes import Prefixes
from service.engine.walk import forward, walk
from tests.analysis.subjects import Subject
from tests.engine.made import every_site, everything, worst
from tests.engine.test_walk import BOUNDS, GAPS, IDS


def padded(
    model: Model, runs: Sequence[Run], tree: Prefixes | None = None, graphs: Graphs | None = None
) -> list[Activations]:
    """The activations of each run in one pack of a static shape."""
    tree = Prefixes(dtype=model.dtype) if tree is None else tree
    filling = Filling()
    placed = tree.place(runs)
    for one in placed:
        filling.add(one)
    try:
        return walk(model, filling, tree, graphs=graphs or Graphs())
    finally:
        tree.release(placed)


def shape(runs: Sequence[Run]) -> tuple[int, ...]:
    """The shape of a pack's mask."""
    filling = Filling()
    for one in Prefixes().place(runs):
        filling.add(one)
    return pack(filling, static=True).sees.shape


def company(model: Model, dtype: torch.dtype) -> dict[str, list[Run]]:
    """Packs of one group and of several, of runs of different lengths and depths."""
    last, n = model.n_layers - 1, len(IDS)

    def reading(ids: Sequence[int], point: HookPoint, layer: int, *rows: int) -> Run:
        return Run(ids, range(len(ids)), {Site(layer, point): rows or [len(ids) - 1]}, dtype)

    pair = [reading(IDS, "mlp_in", last), reading(IDS[-1:], "mlp_in", last)]
    shallow = [reading(IDS[2:9], "resid_mid", 0, 1, 6), reading(IDS[4:], "resid_post", 0)]
    return {
        "one run": [everything(model, IDS, GAPS, dtype)],
        "a pair": pair,
        "runs that share rows": [reading((*IDS, i), "mlp_in", last, n) for i in range(1, 6)],
        "several tries": [*pair, *(reading(IDS[i:], "mlp_act", last, 0, 2) for i in range(1, 8))],
        "several depths": [*pair, *shallow, everything(model, IDS[::-1], None, dtype)],
        "no attention in the last block": [
            reading(IDS, "resid_pre", last),
            reading(IDS[3:], "ln_1_out", last),
            *shallow,
        ],
        "wide": [reading((*IDS, *IDS, *range(1, 10)), "resid_post", last), *pair],
    }


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_static_shape_gives_the_same_answers(
    variant: Subject, dtype: torch.dtype, bound: float
) -> None:
    """In every family, packs of padded groups read what packs of exactly their rows read."""
    shapes = set()
    for name, runs in company(variant.model, dtype).items():
        shapes.add(shape(runs))
        exact = forward(variant.model, runs)
        for read, truth in zip(padded(variant.model, runs), exact, strict=True):
            assert worst(read, truth) <= bound, name
    assert len(shapes) > 4
    assert max(groups for groups, *_ in shapes) > 4


tokens = st.lists(st.integers(1, 3), min_size=1, max_size=12)
sites = st.builds(
    Site, st.integers(0, 2), st.sampled_from(["ln_1_out", "attn_out", "mlp_in", "resid_post"])
)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.lists(st.tuples(tokens, sites, st.integers(0, 11)), min_size=1, max_size=9))
def test_any_runs_read_the_same_in_a_static_shape(
    tiny: Model, asked: list[tuple[list[int], Site, int]]
) -> None:
    """Any runs of any lengths and depths read the same in padded groups as alone, and what they
    keep serves later runs."""
    runs = [
        Run(ids, range(len(ids)), {site: [min(row, len(ids) - 1)]}, torch.float64)
        for ids, site, row in asked
    ]
    tree = Prefixes(1 << 20, torch.float64)
    for _ in range(2):
        for run, read in zip(runs, padded(tiny, runs, tree), strict=True):
            assert worst(read, forward(tiny, [run])[0]) <= 1e-12


def test_known_and_patched_rows_have_exact_shapes(tiny: Model) -> None:
    """Packs with known or patched rows have one group of exactly their rows."""
    source = Run(IDS, range(len(IDS)), every_site(tiny, [len(IDS) - 1]))
    query = Run(IDS[-1:], [len(IDS) - 1], every_site(tiny, [0]))
    follows = Run(query.tokens, query.positions, query.reads, patch=Follow(source, 13, 0))
    tree = Prefixes(1 << 20)
    for runs, static, rows in (
        ([source, query], True, 16),
        ([source, query], False, 2),
        ([source, follows], False, 2),
    ):
        placed = tree.place(runs)
        filling = Filling()
        for one in placed:
            filling.add(one)
        laid_out = pack(filling, static=True)
        assert laid_out.static == static
        assert len(laid_out.tokens) == rows
        walk(tiny, filling, tree, graphs=Graphs())
        tree.release(placed)
    (cold,), (*_, warm) = forward(tiny, [follows]), padded(tiny, [source, follows], tree)
    assert worst(warm, cold) <= 5e-6
