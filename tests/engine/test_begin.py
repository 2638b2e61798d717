"""Runs that begin at a layer from a given stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from service.engine import Activations, Begin, Fixed, Follow, Model, Run, Site, plan
from service.engine.graphs import Graphs
from service.engine.prefixes import Prefixes
from service.engine.question import AnswerSize, distinct_rows
from service.engine.walk import forward
from tests.analysis.subjects import Subject
from tests.engine.desk import Desk, asking
from tests.engine.made import every_site, everything, relative, worst
from tests.engine.static import updates_of
from tests.engine.test_layouts import padded
from tests.engine.test_walk import BOUNDS, GAPS, IDS


def begun(run: Run, read: Activations, layer: int) -> Run:
    """The run from a layer on, from the stream that it read there in all of its rows."""
    reads = {site: rows for site, rows in run.reads.items() if site.layer >= layer}
    return replace(run, reads=reads, begin=Begin(layer, read[Site(layer, "resid_pre")]))


def above(read: Activations, layer: int) -> dict[Site, torch.Tensor]:
    """The activations from a layer on."""
    return {site: values for site, values in read.items() if site.layer >= layer}


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2-windows", "gemma3", "neox-parallel"])
def test_run_from_a_layer_equals_the_run_from_its_embeddings(
    name: str, dtype: torch.dtype, bound: float, variant_of: Callable[[str], Subject]
) -> None:
    """At every layer, with gaps between positions and in both layouts, a run that begins from the
    stream of a run reads what that run reads."""
    model = variant_of(name).model
    runs = [
        everything(model, IDS, GAPS, dtype),
        everything(model, IDS[3:8], range(2, 7), dtype),
        everything(model, IDS[:1], [0], dtype),
    ]
    whole = forward(model, runs)
    for layer in range(model.n_layers):
        later = [begun(*pair, layer) for pair in zip(runs, whole, strict=True)]
        for found in (forward(model, later), padded(model, later)):
            for read, truth in zip(found, whole, strict=True):
                assert worst(read, above(truth, layer)) <= bound
        moved = replace(later[0], begin=Begin(layer, 2 * whole[0][Site(layer, "resid_pre")]))
        last = Site(model.n_layers - 1, "resid_post")
        assert relative(forward(model, [moved])[0][last], whole[0][last]) > 1e-3


def test_recorded_blocks_begin_at_any_layer(tiny: Model) -> None:
    """Blocks that were recorded for runs of one first layer serve those of another."""
    graphs, runs = Graphs(1 << 30), [everything(tiny, IDS), everything(tiny, IDS[:5])]
    whole = forward(tiny, runs)
    for layer in (1, 0, 2, 1, 0, 2, 1):
        later = [begun(*pair, layer) for pair in zip(runs, whole, strict=True)]
        for read, truth in zip(padded(tiny, later, graphs=graphs), whole, strict=True):
            assert worst(read, above(truth, layer)) <= 5e-6
    assert graphs.captures > 0


def test_run_alone_from_its_embeddings_is_bit_equal(tiny: Model) -> None:
    """A run that begins at any layer is bit-equal to the run from its embeddings."""
    run = everything(tiny, IDS, GAPS)
    (whole,) = forward(tiny, [run])
    for layer in range(tiny.n_layers):
        (read,) = forward(tiny, [begun(run, whole, layer)])
        assert all(torch.equal(read[site], whole[site]) for site in read)


def test_patch_acts_from_the_layer_on(tiny: Model) -> None:
    """A run with a static patch may begin at a layer, and its patch acts on its rows there."""
    patch = Fixed(updates_of(tiny, 1))
    run = replace(everything(tiny, IDS, dtype=torch.float64), patch=patch)
    plain, (whole,) = forward(tiny, [replace(run, patch=None)]), forward(tiny, [run])
    runs = [begun(run, whole, 1), begun(replace(run, patch=None), plain[0], 1)]
    for read, truth in zip(forward(tiny, runs), (whole, plain[0]), strict=True):
        assert worst(read, above(truth, 1)) <= 1e-12


def test_rows_that_begin_at_a_layer_are_not_shared(tiny: Model) -> None:
    """Runs with the same ids and other streams read their own, and leave nothing in the cache."""
    run = Run(IDS, range(len(IDS)), {Site(2, "resid_post"): [len(IDS) - 1]})
    streams = [
        torch.randn(len(IDS), 32, generator=torch.Generator().manual_seed(i)) for i in (1, 2)
    ]
    runs = [run, *(replace(run, begin=Begin(1, stream)) for stream in streams)]
    tree = Prefixes(1 << 20)
    alone = [forward(tiny, [one])[0] for one in runs]
    for _ in range(2):
        for read, truth in zip(forward(tiny, runs, prefixes=tree), alone, strict=True):
            assert worst(read, truth) <= 5e-6
    assert tree.hits == len(IDS) - 1
    assert distinct_rows([*runs, *runs[1:]]) == 5 * len(IDS)
    made = plan(tiny, asking(runs[1:]), AnswerSize())
    assert (made.work.rows, made.work.layers) == (2 * len(IDS), 2)


def test_scheduler_packs_runs_that_begin_at_one_layer(tiny: Model) -> None:
    """Runs of two questions that begin at one layer share a forward; those that begin at another
    layer, or from embeddings, do not."""

    def from_layer(layer: int, seed: int) -> Run:
        stream = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed))
        return Run(IDS[:4], range(4), {Site(2, "resid_post"): [3]}, begin=Begin(layer, stream))

    runs = {"a": from_layer(1, 1), "b": from_layer(1, 2), "c": from_layer(2, 3)}
    desk = Desk(tiny)
    for name, run in runs.items():
        desk.admit(name, asking([run]))
    desk.admit("d", asking([replace(runs["a"], begin=None)]))
    desk.turns()
    assert sorted(desk.forwards) == [1, 1, 2]
    for name, run in runs.items():
        assert worst(desk.ended[name][0], forward(tiny, [run])[0]) <= 5e-6


@pytest.mark.parametrize(
    ("layer", "rows", "read"), [(2, 3, Site(1, "resid_post")), (1, 4, Site(1, "mlp_in"))]
)
def test_begin_that_does_not_fit_its_run_is_refused(layer: int, rows: int, read: Site) -> None:
    """Reads below the first layer, and streams of another number of rows, raise `ValueError`."""
    with pytest.raises(ValueError, match="begin"):
        Run((1, 2, 3), range(3), {read: [2]}, begin=Begin(layer, torch.zeros(rows, 32)))


def test_run_that_begins_at_a_layer_neither_follows_nor_is_followed(tiny: Model) -> None:
    """A followed row is computed in the same blocks, so both runs begin at their embeddings."""
    run = Run((1, 2), range(2), every_site(tiny, [1]))
    later = Run((1, 2), range(2), {Site(1, "mlp_in"): [1]}, begin=Begin(1, torch.zeros(2, 32)))
    for source, follower in ((later, run), (run, later)):
        with pytest.raises(ValueError, match="follows"):
            replace(follower, patch=Follow(source, 1, 1))


def test_runs_of_several_kinds_have_a_pack_each(tiny: Model) -> None:
    """`forward` returns runs of two dtypes and of two first layers in their order."""
    narrow, wide = everything(tiny, IDS), everything(tiny, IDS, dtype=torch.float64)
    found: Sequence[Activations] = forward(tiny, [narrow, wide])
    later = [begun(narrow, found[0], layer) for layer in (1, 2)]
    mixed = [later[1], wide, narrow, later[0]]
    for run, read in zip(mixed, forward(tiny, mixed), strict=True):
        assert worst(read, forward(tiny, [run])[0]) <= 5e-6
        assert next(iter(read.values())).dtype == (run.dtype or torch.float32)
