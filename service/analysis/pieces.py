"""Pieces of a computation: the same operators for many pairs, layers and positions at once.

The activations of all rows (a row is a requested position of a pair) and of several layers are
concatenated once. Then every figure is one operator on the whole piece, and only Δn·W is a product
for each layer, because each layer has its own weight. Between pieces other questions have their
turn, so the time that a piece takes on one core is limited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from schemas.activations import HookPoint
from service.engine import Activations, Block, Condition, Model, Site
from service.theory import NonFinite

T = TypeVar("T")

CPU_BUDGET = 1 << 29
"""Multiplications and additions of a piece on a CPU: 10 to 20 ms on one core."""
GPU_BUDGET = 1 << 35
"""The same on a GPU, where they take about 1 ms."""
MAX_ENTRIES = 1024
"""Rows times layers of a piece: forming 1,024 entries of an answer takes about 20 ms of Python."""

COMPARISON = 128
"""Multiplications that take as long as comparing one number of two vectors in float64."""


@dataclass(frozen=True)
class Piece:
    """Some layers at some rows.

    Args:
        at: Indices into the question's layers.
        layers: The layers themselves.
        rows: The rows. A piece of several layers has all rows.
        count: Number of all rows.
    """

    at: range
    layers: Sequence[int]
    rows: slice
    count: int

    def stacked(self, kinds: Sequence[Sequence[Activations]], *points: HookPoint) -> Tensor:
        """Activations of the piece, (layers, points, kinds, rows, width).

        Args:
            kinds: For each kind of run, such as baseline and context, the runs whose rows
                together, in their order, are all rows.
            points: Hook points of one width.
        """
        read = [
            run.sites[Site(layer, point)]
            for layer in self.layers
            for point in points
            for kind in kinds
            for run in kind
        ]
        sizes = (len(self.layers), len(points), len(kinds), self.count, read[0].shape[-1])
        values = torch.cat(read).view(sizes)
        return values if self.is_whole else values[:, :, :, self.rows]

    @property
    def is_whole(self) -> bool:
        """Whether the piece has all rows."""
        return self.rows == slice(0, self.count)


def pieces(model: Model, layers: Sequence[int], rows: int, cost: int) -> list[Piece]:
    """Cut layers × rows into pieces.

    Args:
        model: The resident model.
        layers: Layers from 0.
        rows: Number of rows.
        cost: Multiplications and additions of one row of one layer.
    """
    most = most_entries(model, cost)
    together = max(1, most // rows)
    parts = slices(rows, most)
    indices = range(len(layers))
    return [
        Piece(at, [layers[i] for i in at], part, rows)
        for at in (indices[i : i + together] for i in range(0, len(layers), together))
        for part in parts
    ]


def most_entries(model: Model, cost: int) -> int:
    """Number of entries of a piece, each of which takes `cost` multiplications and additions."""
    budget = CPU_BUDGET if model.device.type == "cpu" else GPU_BUDGET
    return max(1, min(budget // cost, MAX_ENTRIES))


def slices(count: int, most: int) -> list[slice]:
    """Slices of `count` rows, of about equal lengths up to `most`."""
    parts = -(-count // most)
    length = -(-count // parts)
    return [slice(start, min(start + length, count)) for start in range(0, count, length)]


@dataclass(frozen=True)
class FirstWeights:
    """The first weights of several layers, as the projection of rows that lie layer by layer.

    Args:
        blocks: The blocks, in the order of the rows; each has equally many.
    """

    blocks: Sequence[Block]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.blocks[0].w_in.dtype

    def product(self, x: Tensor) -> Tensor:
        """One product for each layer with its resident weight, (rows, d_model) to (rows, d_mlp)."""
        if len(self.blocks) == 1:
            return self.blocks[0].w_in.product(x)
        parts = x.chunk(len(self.blocks))
        return torch.cat(
            [block.w_in.product(part) for block, part in zip(self.blocks, parts, strict=True)]
        )


def first_weights(model: Model, piece: Piece) -> FirstWeights:
    """The first weights of a piece's layers."""
    return FirstWeights([model.blocks[layer] for layer in piece.layers])


def update_cost(model: Model) -> int:
    """Multiplications and additions of Δn·W for one row of one layer."""
    return model.d_model * model.blocks[0].w_in.width


def exists(figures: Tensor) -> Condition:
    """The condition that updates exist: flags, or figures that are finite if the updates exist."""
    return Condition(
        figures,
        NonFinite(
            "an update does not exist: a vector that it divides by has norm 0, or a value is not "
            "finite"
        ),
    )


def conditions_of(*kinds: Sequence[Activations]) -> tuple[Condition, ...]:
    """The conditions of all runs."""
    return tuple(condition for kind in kinds for run in kind for condition in run.conditions)


def placed(found: Sequence[tuple[Piece, Sequence[Sequence[T]]]]) -> list[list[T]]:
    """The entries of all layers and rows, [layer][row], from those of each piece."""
    entries: list[list[T]] = []
    for piece, of_piece in found:
        if piece.rows.start == 0:
            entries += [list(of_layer) for of_layer in of_piece]
        else:
            entries[-1] += of_piece[0]
    return entries


def divided(entries: Sequence[Sequence[T]], lengths: Sequence[int]) -> list[list[T]]:
    """The entries of each pair, layer by layer, from [layer][row].

    Args:
        entries: For each layer, the entries of the rows of all pairs.
        lengths: Number of rows of each pair.
    """
    found: list[list[T]] = []
    start = 0
    for length in lengths:
        found.append([one for row in entries for one in row[start : start + length]])
        start += length
    return found
