"""Graphs: which blocks are recorded, replayed and dropped. On a CPU a recording runs its block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from service.engine import Model, Run, Site, load
from service.engine.graphs import STREAM, Graphs, Recording, Shape, Work
from service.engine.pack import Filling
from service.engine.prefixes import Prefixes
from service.engine.walk import forward, walk
from tests.engine.made import worst

ROOM = 1 << 20
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class Block:
    """A block that doubles the stream, returns it plus one, and counts how often it runs."""

    def __init__(self, shape: Shape, width: int = 4) -> None:
        self.x = shape.load({STREAM: torch.ones(width)})[STREAM]
        self.runs = 0

    def __call__(self) -> Sequence[Tensor]:
        """Run the block."""
        self.runs += 1
        self.x.mul_(2)
        return [self.x + 1]


def test_a_block_is_recorded_at_its_second_use_and_then_replayed() -> None:
    """Each use doubles the stream once, whether it is computed, recorded or replayed."""
    graphs = Graphs(ROOM)
    shape = graphs.shape("a")
    block = Block(shape)
    for use in range(1, 6):
        (result,) = graphs.run(shape, 0, block)
        assert block.x.tolist() == [2.0**use] * 4
        assert result.tolist() == [2.0**use + 1] * 4
        assert graphs.captures == int(use > 1)


def test_without_memory_nothing_is_recorded() -> None:
    """With a budget of 0 every use is computed."""
    graphs = Graphs(0)
    shape = graphs.shape("a")
    block = Block(shape)
    for _ in range(5):
        graphs.run(shape, 0, block)
    assert (graphs.captures, block.runs) == (0, 5)


def test_the_least_recently_used_shape_is_dropped() -> None:
    """Shapes beyond the budget are dropped, the one that was not used for longest first."""
    graphs = Graphs(100)
    for name in "abac":
        block = Block(graphs.shape(name), 8)
        for _ in range(2):
            graphs.run(graphs.shape(name), 0, block)
    graphs.shape("c")
    assert list(graphs._shapes) == ["c"]


def test_a_recording_that_differs_is_never_used() -> None:
    """A replay that gives other numbers ends recording with a warning; the answer is the computed
    one."""

    class Wrong(Graphs):
        def _record(
            self, work: Work, expected: Sequence[Tensor], device: torch.device
        ) -> Recording:
            replay, results = super()._record(work, expected, device)

            def off() -> None:
                replay()
                results[0].mul_(1.01)

            return off, results

    graphs = Wrong(ROOM)
    shape = graphs.shape("a")
    block = Block(shape)
    graphs.run(shape, 0, block)
    with pytest.warns(RuntimeWarning, match="a replay differs"):
        (result,) = graphs.run(shape, 0, block)
    assert (block.x.tolist(), result.tolist()) == ([4.0] * 4, [5.0] * 4)
    for _ in range(3):
        graphs.run(shape, 0, block)
    assert block.x.tolist() == [32.0] * 4
    assert graphs.captures == 0


def test_a_recording_that_fails_is_computed_instead() -> None:
    """An error while recording ends recording with a warning, and the answer is right."""

    class Failing(Graphs):
        def _record(
            self, work: Work, expected: Sequence[Tensor], device: torch.device
        ) -> Recording:
            work()
            raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Failing(ROOM)
    shape = graphs.shape("a")
    block = Block(shape)
    graphs.run(shape, 0, block)
    with pytest.warns(RuntimeWarning, match="not permitted"):
        (result,) = graphs.run(shape, 0, block)
    assert (block.x.tolist(), result.tolist()) == ([4.0] * 4, [5.0] * 4)


@pytest.mark.parametrize("device", DEVICES)
def test_replayed_packs_equal_runs_alone(tiny_folder: Path, device: str) -> None:
    """Computed, recorded and replayed packs of one shape, with other tokens and read rows each
    time, equal each run alone."""
    tiny = load(str(tiny_folder), revision=None, device=device, dtype="float32")
    graphs, tree, last = Graphs(ROOM * 64), Prefixes(1 << 24), tiny.n_layers - 1
    for turn in range(6):
        runs = [
            Run(
                [(7 * i + 3 * turn + j) % 250 for j in range(5 + 3 * i)],
                range(5 + 3 * i),
                {Site(last, "mlp_in"): [(turn + i) % 5], Site(0, "resid_mid"): [2]},
                trunk=0 if turn < 4 else None,
            )
            for i in range(5)
        ]
        filling, placed = Filling(), tree.place(runs)
        for one in placed:
            filling.add(one)
        for run, read in zip(runs, walk(tiny, filling, tree, graphs=graphs), strict=True):
            assert worst(read, forward(tiny, [run])[0]) <= 5e-6
        tree.release(placed)
    assert graphs.captures >= tiny.n_layers


def test_runs_of_another_dtype_are_never_recorded(tiny: Model) -> None:
    """Their weights are cast for one use, so a recording would read memory that is free again."""
    graphs, tree = Graphs(ROOM * 64), Prefixes()
    run = Run([1, 2, 3], range(3), {Site(0, "mlp_in"): [2]}, torch.float64)
    for _ in range(3):
        filling, placed = Filling(), tree.place([run])
        filling.add(placed[0])
        (read,) = walk(tiny, filling, tree, graphs=graphs)
        assert worst(read, forward(tiny, [run])[0]) <= 1e-12
        tree.release(placed)
    assert graphs.captures == 0


def test_nan_in_both_is_no_difference() -> None:
    """A prompt whose values overflow does not end recording."""
    graphs = Graphs(ROOM)
    shape = graphs.shape("a")
    block = Block(shape)
    block.x[0] = torch.nan
    for _ in range(3):
        graphs.run(shape, 0, block)
    assert graphs.captures == 1
