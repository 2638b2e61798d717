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
from service.theory import StaticUpdate

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
    """A patch whose updates are given. They act on every row that the run computes.

    Args:
        updates: The update of each patched layer. Rows of all runs of a pack that have the same
            update object are multiplied together.
        apply: How W + ΔW is applied.
    """

    updates: Mapping[int, StaticUpdate]
    apply: Apply = "factored"


@dataclass(frozen=True, eq=False)
class Begin:
    """The stream from which a run begins, in place of the embeddings of its tokens.

    Args:
        layer: The first layer that is computed.
        stream: resid_pre of every row at that layer, (rows, d_model), on the model's device and in
            the run's dtype.
    """

    layer: int
    stream: Tensor


@dataclass(frozen=True, eq=False)
class History:
    """The handle of what a growing run has computed, made once for all its runs.

    Each run with the same history begins with the rows of the run before it, and only new rows are
    computed. Their keys and values are kept until the question ends. Rows of a patched run keep
    those of the patch that they were computed with.

    Args:
        begins: Number of first rows that are shared with other runs, 0 for a patched run.
        capacity: Maximum number of the other rows. Memory for them is allocated at once.
    """

    begins: int
    capacity: int


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
        begin: Where the run begins; None: at the embeddings. Positions still matter for rotations
            and windows. A run that begins at a layer shares its rows with no other run.
        history: What earlier runs computed of its rows; None: nothing is kept for later ones. It
            needs a read at or after attn_out of the last layer that is read, so that all keys and
            values are computed, and all its runs read the same last layer.

    Raises:
        ValueError: The run begins at a layer and reads a layer below it, has another number of rows
            than its stream, has a history, or follows another run or is followed. Its history has
            no rows of its own, too many, or rows before it although the run is patched.
    """

    tokens: Sequence[int] | NDArray[np.int64]
    positions: Sequence[int] | NDArray[np.int64]
    reads: Mapping[Site, Sequence[int]] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    patch: Follow | Fixed | None = None
    reduce: Callable[[Tensor], Tensor] | None = None
    trunk: int | None = None
    begin: Begin | None = None
    history: History | None = None

    def __post_init__(self) -> None:
        if isinstance(self.patch, Follow) and (self.begin or self.patch.source.begin):
            raise ValueError("a run that begins at a layer neither follows nor is followed")
        if self.history is not None:
            self._check_history(self.history)
        if self.begin is None:
            return
        if len(self.begin.stream) != len(self.tokens):
            raise ValueError(f"{len(self.begin.stream)} rows to begin with, {len(self.tokens)} ids")
        if any(site.layer < self.begin.layer for site in self.reads):
            raise ValueError(f"a read below layer {self.begin.layer}, where the run begins")

    def _check_history(self, history: History) -> None:
        own = len(self.tokens) - history.begins
        if not 0 < own <= history.capacity:
            raise ValueError(f"{own} rows of a history with room for {history.capacity}")
        if self.begin is not None or (self.patch is not None and history.begins):
            raise ValueError(
                "a run with a history of some rows begins at its embeddings, unpatched"
            )
        last = [STAGE[site.point] for site in self.reads if site.layer == self.depth]
        if max(last, default=-1) < STAGE["attn_out"]:
            raise ValueError("a run with a history reads a hook point after its last attention")

    @property
    def histories(self) -> tuple[History, ...]:
        """Its history, and that of the run that it follows."""
        source = self.patch.source.history if isinstance(self.patch, Follow) else None
        return tuple(one for one in (self.history, source) if one is not None)

    @property
    def first_layer(self) -> int:
        """The first layer that is computed. Runs that share a pack have it in common."""
        return 0 if self.begin is None else self.begin.layer

    @property
    def shares(self) -> bool:
        """Whether its rows may be those of other runs."""
        return self.patch is None and self.begin is None

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
        """`trunk` as a number. All rows before a history are worth keeping."""
        if self.history is not None:
            return self.history.begins
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
        patched_rows: Number of the run's rows that passed through a changed block.
    """

    sites: Mapping[Site, Tensor]
    conditions: tuple[Condition, ...] = ()
    patched_rows: int = 0

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
