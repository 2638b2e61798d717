"""Known prefixes: keys and values of rows that were computed before, kept.

They hold the position embedding, so a row is known by the whole path of (id, position) that leads
to it. The trie is kept in chunks of 16 rows; each says how many layers it has, since a run that
reads an early layer fills no more. A chunk is used only where it has all layers that are needed,
and no row that is read is ever taken from it. Patched runs neither read nor write it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from service.engine.run import Run

CHUNK = 16
"""Rows of a chunk."""

Key: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(eq=False)
class Chunk:
    """The keys and values of 16 rows that follow one another.

    Args:
        key: Their ids and positions.
        parent: The chunk before them; None at the beginning.
        layers: (layers, 2, heads, 16, d_head), keys first; one storage of its own.
        children: The chunks that follow.
    """

    key: Key
    parent: Chunk | None
    layers: Tensor
    children: dict[Key, Chunk] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """How many layers it has, from the first on."""
        return len(self.layers)

    @property
    def size(self) -> int:
        """Bytes of its storage."""
        return self.layers.untyped_storage().nbytes()


Find: TypeAlias = Callable[[Run], Sequence[Chunk]]
"""The known beginning of a run."""


def nothing_known(_run: Run) -> Sequence[Chunk]:
    """No beginning is known."""
    return ()


class Prefixes:
    """The kept trie; the least recently used chunk goes first.

    Args:
        budget: Bytes that it may hold; 0 keeps nothing.
        n_layers: Of the model.
        dtype: Of the model; runs in another are not kept.
    """

    def __init__(self, budget: int, n_layers: int, dtype: torch.dtype) -> None:
        self.budget = budget
        self.n_layers = n_layers
        self.dtype = dtype
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._roots: dict[Key, Chunk] = {}
        self._by_use: OrderedDict[Chunk, None] = OrderedDict()

    def find(self, run: Run) -> Sequence[Chunk]:
        """The longest known beginning of a run, before the first row that it reads.

        A patched run, or one in another dtype than the resident one, has none.
        """
        if not self.keeps(run):
            return ()
        before = min((min(rows) for rows in run.reads.values() if len(rows)), default=0)
        layers = min(run.depth + 1, self.n_layers)
        found: list[Chunk] = []
        level = self._roots
        for key in keys_of(run, 0, before):
            chunk = level.get(key)
            if chunk is None or chunk.depth < layers:
                break
            found.append(chunk)
            level = chunk.children
        for chunk in reversed(found):
            self._by_use.move_to_end(chunk)
        return found

    def keep(
        self, run: Run, known: Sequence[Chunk], layers: Callable[[int, int], Tensor | None]
    ) -> None:
        """Keep a run's rows behind its known beginning.

        Args:
            run: A run that was computed.
            known: Its known beginning.
            layers: The keys and values of its rows from one to another, as a chunk holds them, or
                None where they were not computed.
        """
        if not self.keeps(run):
            return
        self.hits += CHUNK * len(known)
        self.misses += len(run.tokens) - CHUNK * len(known)
        parent = known[-1] if known else None
        if parent is not None and parent not in self._by_use:
            return
        path = list(known)
        for i, key in enumerate(keys_of(run, len(known) * CHUNK, len(run.tokens)), len(known)):
            level = self._roots if parent is None else parent.children
            chunk = level.get(key)
            if chunk is None or chunk.depth < min(run.depth + 1, self.n_layers):
                chunk = self._put(level, key, parent, layers(i * CHUNK, (i + 1) * CHUNK))
            if chunk is None:
                break
            path.append(chunk)
            parent = chunk
        for chunk in reversed(path):
            self._by_use.move_to_end(chunk)
        self._shrink()

    def _put(
        self, level: dict[Key, Chunk], key: Key, parent: Chunk | None, computed: Tensor | None
    ) -> Chunk | None:
        """The chunk of a key, with what was computed where that has more layers."""
        chunk = level.get(key)
        if computed is None or (chunk is not None and chunk.depth >= len(computed)):
            return chunk
        if chunk is None:
            chunk = level[key] = Chunk(key, parent, computed)
        else:
            self.bytes -= chunk.size
            chunk.layers = computed
        self.bytes += chunk.size
        self._by_use[chunk] = None
        return chunk

    def keeps(self, run: Run) -> bool:
        """Whether a run may use and add to what is known."""
        return self.budget > 0 and run.patch is None and run.dtype in (None, self.dtype)

    def _shrink(self) -> None:
        """Drop what was used least recently: always a chunk that nothing follows."""
        while self.bytes > self.budget:
            chunk, _ = self._by_use.popitem(last=False)
            level = self._roots if chunk.parent is None else chunk.parent.children
            del level[chunk.key]
            self.bytes -= chunk.size


def keys_of(run: Run, start: int, stop: int) -> list[Key]:
    """The keys of the whole chunks among a run's rows from `start` to `stop`."""
    rows = list(zip(run.tokens[start:stop], run.positions[start:stop], strict=True))
    return [tuple(rows[i : i + CHUNK]) for i in range(0, len(rows) - CHUNK + 1, CHUNK)]


def stacked(layers: Sequence[tuple[Tensor, Tensor]], rows: Sequence[Tensor]) -> Tensor:
    """The chunk of some rows of a pack, (layers, 2, heads, rows, d_head).

    Args:
        layers: Keys and values, (heads, rows of the layer, d_head) each.
        rows: Where the rows are in each layer.
    """
    return torch.stack(
        [
            torch.stack([keys[:, here], values[:, here]])
            for (keys, values), here in zip(layers, rows, strict=True)
        ]
    )
