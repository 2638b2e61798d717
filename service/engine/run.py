"""Runs: the tokens that a question runs through the model, and the activations that it reads.

A run is a sequence of tokens at positions, each of which is a row. A row sees all earlier rows of
its own run and itself. A patch changes the weights for one run: it acts on every row, as weights
do, and its output is the run's stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.activations import HookPoint
from schemas.equivalence_checks import Apply
from schemas.pairs import Form
from service.engine.readback import Condition
from service.theory import ImplicitUpdate

STAGE: Mapping[HookPoint, int] = {point: i for i, point in enumerate(get_args(HookPoint))}


POSITION_BITS = 32
"""Bits of a row's number that hold its position; its id is above them."""


class Site(NamedTuple):
    """A hook point of a layer."""

    layer: int
    point: HookPoint


@dataclass(frozen=True, eq=False)
class Follow:
    """A patch that is formed block by block, so that one row of the run reads as a row of another.

    In each block ΔW and Δh are formed from the stream that the patched blocks below produce
    (arXiv 2511.17864, Algorithm 1).

    Args:
        source: The run with context, which is computed in the same pack. Its reads only determine
            which of its rows must be computed.
        source_row: The row to follow, an index into the source's rows.
        row: The row that follows, an index into the patched run's rows.
        apply: How W + ΔW is applied.
        form: Whether Δh is added to the block's output or carried by the MLP's second weight.
    """

    source: Run
    source_row: int
    row: int
    apply: Apply = "factored"
    form: Form = "bias"


@dataclass(frozen=True, eq=False)
class Fixed:
    """A patch whose updates are given.

    Args:
        updates: ΔW and Δh of each patched layer, for a single position.
        apply: How W + ΔW is applied.
    """

    updates: Mapping[int, ImplicitUpdate]
    apply: Apply = "factored"


@dataclass(frozen=True, eq=False)
class Run:
    """One sequence of tokens through the model.

    Args:
        tokens: One id per row.
        positions: One position per row. Gaps are allowed; a row sees the rows before it.
        reads: The rows to read at each site, in the order of the result.
        dtype: The dtype of the run; None: that of the resident model.
        patch: Changed weights; None: the resident ones.
        reduce: Reduces each site's (rows, width) as soon as it is read; None keeps all of it.
        trunk: Number of first rows that other runs may begin with, so that their keys and values
            are worth keeping; None: those before the first row that is read.
    """

    tokens: Sequence[int] | NDArray[np.int64]
    positions: Sequence[int] | NDArray[np.int64]
    reads: Mapping[Site, Sequence[int]] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    patch: Follow | Fixed | None = None
    reduce: Callable[[Tensor], Tensor] | None = None
    trunk: int | None = None

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Each row's id and position as one number."""
        return (_array(self.tokens) << POSITION_BITS) | _array(self.positions)

    @cached_property
    def first_read(self) -> int:
        """The first row that is read; 0 if none is."""
        count = len(self.tokens)
        return min((row % count for rows in self.reads.values() for row in rows), default=0)

    @property
    def trunk_rows(self) -> int:
        """`trunk` as a number."""
        return self.first_read if self.trunk is None else self.trunk

    @cached_property
    def depth(self) -> int:
        """The last layer that is needed; -1 if nothing is read."""
        return max((site.layer for site in self.reads), default=-1)


@dataclass(frozen=True, eq=False)
class Activations(Mapping[Site, Tensor]):
    """What a run read.

    Args:
        sites: The values of each site: (rows, width) on the run's device and in its dtype, or
            reduced.
        conditions: What must hold for the values to be used. Pass them to `readback.fetch` with
            whatever is formed from the values.
    """

    sites: Mapping[Site, Tensor]
    conditions: tuple[Condition, ...] = ()

    def __getitem__(self, site: Site) -> Tensor:
        """The values of a site."""
        return self.sites[site]

    def __iter__(self) -> Iterator[Site]:
        """The sites."""
        return iter(self.sites)

    def __len__(self) -> int:
        """Number of sites."""
        return len(self.sites)


def _array(values: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    if isinstance(values, range):
        return np.arange(values.start, values.stop, values.step, dtype=np.int64)
    return np.asarray(values, np.int64)
