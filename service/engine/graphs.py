"""CUDA graphs: blocks of a static shape, recorded once and replayed with one launch.

A GPU computes a block of a few rows in less time than Python takes to launch its kernels. So a
block is recorded at its second use in a shape, and the first replay is compared with the computed
block. All blocks of a shape read and write the same static tensors. On a device without graphs a
recording runs the function, so that the bookkeeping is the same everywhere.
"""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from service.engine.readback import fetch

Work: TypeAlias = Callable[[], Sequence[Tensor]]
"""Computes a block from the static tensors, and returns its results. It may write to the former."""
Recording: TypeAlias = tuple[Callable[[], None], Sequence[Tensor]]
"""A function that repeats the work, and the tensors to which it writes the results."""
STREAM = "x"
"""Name of the static tensor that a block replaces by its output."""
TOLERANCE = 1e-4
"""Maximum difference of a replay from the computed block, relative to the block's greatest value,
but at least 8 roundings of the dtype. A wrong replay differs by about 1."""


@dataclass(eq=False)
class Shape:
    """The blocks of one shape.

    Args:
        static: The tensors that all blocks read and write, by name.
        recordings: The recorded blocks.
        uses: Number of uses of each block.
        bytes: Bytes that it holds on the device.
    """

    static: dict[Hashable, Tensor] = field(default_factory=dict)
    recordings: dict[Hashable, Recording] = field(default_factory=dict)
    uses: Counter[Hashable] = field(default_factory=Counter)
    bytes: int = 0

    def load(self, values: Mapping[Hashable, Tensor]) -> Mapping[Hashable, Tensor]:
        """Copy values into the static tensors, and return all static tensors."""
        for name, value in values.items():
            if name in self.static:
                self.static[name].copy_(value)
            else:
                self.static[name] = value.clone()
                self.bytes += value.nbytes
        return self.static


class Graphs:
    """Recorded blocks. The least recently used shape is dropped first.

    Args:
        budget: Maximum bytes; 0 records nothing.
    """

    def __init__(self, budget: int = 0) -> None:
        self.captures = 0
        self._budget = budget
        self._shapes: OrderedDict[Hashable, Shape] = OrderedDict()
        self._pool: Any = None

    @property
    def bytes(self) -> int:
        """Bytes of all shapes."""
        return sum(shape.bytes for shape in tuple(self._shapes.values()))

    def shape(self, key: Hashable) -> Shape:
        """The blocks of a shape, which are now the most recently used."""
        shape = self._shapes.setdefault(key, Shape())
        self._shapes.move_to_end(key)
        while self.bytes > self._budget and len(self._shapes) > 1:
            self._shapes.popitem(last=False)
        if not any(one.recordings for one in self._shapes.values()):
            # A pool whose graphs are all gone takes no new ones.
            self._pool = None
        return shape

    def run(self, shape: Shape, block: Hashable, work: Work) -> Sequence[Tensor]:
        """The results of a block: computed, recorded or replayed. They last until its next use."""
        shape.uses[block] += 1
        if (recording := shape.recordings.get(block)) is not None:
            replay, results = recording
            replay()
            return results
        # The first use is computed, which also sets the device's libraries up.
        if shape.uses[block] < 2 or self.bytes >= self._budget:
            return work()
        return self._recorded(shape, block, work)

    def clear(self) -> int:
        """Drop everything; returns the number of bytes."""
        freed = self.bytes
        self._shapes.clear()
        self._pool = None
        return freed

    def _recorded(self, shape: Shape, block: Hashable, work: Work) -> Sequence[Tensor]:
        """Record a block, and test the recording against the work itself."""
        stream = shape.static[STREAM]
        before, expected = stream.clone(), [value.clone() for value in work()]
        after = stream.clone()
        stream.copy_(before)
        free = _allocated(stream.device)
        try:
            replay, results = self._record(work, expected, stream.device)
            replay()
        except RuntimeError as error:
            return self._give_up(stream, after, expected, str(error))
        pairs = zip([*results, stream], [*expected, after], strict=True)
        (worst,) = fetch([torch.stack([_apart(*pair) for pair in pairs]).amax()])
        if not worst <= max(TOLERANCE, 8 * torch.finfo(stream.dtype).eps):
            return self._give_up(stream, after, expected, f"a replay differs by {worst:.1e}")
        self.captures += 1
        used = _allocated(stream.device) - free
        shape.bytes += max(used, sum(result.nbytes for result in results))
        shape.recordings[block] = replay, results
        return results

    def _record(self, work: Work, expected: Sequence[Tensor], device: torch.device) -> Recording:
        if device.type != "cuda":
            results = [value.clone() for value in expected]

            def replay() -> None:
                for result, value in zip(results, work(), strict=True):
                    result.copy_(value)

            return replay, results
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        try:
            # Other threads of the process may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                results = list(work())
        finally:
            # A recording that fails leaves its own stream as the current one.
            torch.cuda.set_stream(current)
        self._pool = self._pool or graph.pool()
        return graph.replay, results

    def _give_up(
        self, stream: Tensor, after: Tensor, expected: Sequence[Tensor], reason: str
    ) -> Sequence[Tensor]:
        """Record nothing from now on, and return what was computed."""
        self._budget = 0
        self._shapes.clear()
        warnings.warn(f"CUDA graphs are off: {reason}", RuntimeWarning, stacklevel=2)
        stream.copy_(after)
        return expected


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Greatest difference of two tensors, relative to the second one's greatest value.

    NaN in both is no difference: a prompt that overflows says nothing about the recording.
    """
    one, other = (value.float().nan_to_num(0.5, 1.0, -1.0) for value in (one, other))
    return (one - other).abs().max() / other.abs().max().clamp_min(1e-30)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
