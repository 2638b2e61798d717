"""Runs: what a question asks of the model, and what it gets back.

A run is a row of tokens at positions, and the sites that are read in it. A row sees all earlier
rows of its own run and itself, nothing else. A patch changes the weights for one run; as weights
do, it acts on every row of it, and its output is the run's stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from schemas.activations import HookPoint
from schemas.equivalence_checks import Apply
from service.theory import ImplicitUpdate

STAGE: Mapping[HookPoint, int] = {point: i for i, point in enumerate(get_args(HookPoint))}


class Site(NamedTuple):
    """A hook point of a layer."""

    layer: int
    point: HookPoint


@dataclass(frozen=True, eq=False)
class Follow:
    """A patch formed block by block: one row of the run shall read as a row of another one.

    At each block ΔW and Δh come from the stream that the patched blocks below have produced.

    Args:
        source: The run with context; it is computed in the same pack, and what it reads says
            only from which row on it must be.
        source_row: The row to follow, an index into the source's rows.
        row: The row that follows, an index into the patched run's.
        apply: How W + ΔW is applied.
    """

    source: Run
    source_row: int
    row: int
    apply: Apply = "factored"


@dataclass(frozen=True, eq=False)
class Fixed:
    """A patch that is known beforehand.

    Args:
        updates: ΔW and Δh of each layer that is patched, for a single position.
        apply: How W + ΔW is applied.
    """

    updates: Mapping[int, ImplicitUpdate]
    apply: Apply = "factored"


@dataclass(frozen=True, eq=False)
class Run:
    """One row of tokens through the model.

    Args:
        tokens: Ids, one a row.
        positions: Their positions; gaps are allowed, the order of the rows is the order of sight.
        reads: The rows that are read at each site, in the order in which they are wanted.
        dtype: What the run is computed in; None is the dtype in which the model is resident.
        patch: How its weights differ from the resident ones; None: not at all.
        reduce: What is kept of each site's (rows, width) as it is read; None keeps all of it.
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    reads: Mapping[Site, Sequence[int]] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    patch: Follow | Fixed | None = None
    reduce: Callable[[Tensor], Tensor] | None = None

    @property
    def depth(self) -> int:
        """The last layer that is needed; -1 where nothing is read."""
        return max((site.layer for site in self.reads), default=-1)


Activations = Mapping[Site, Tensor]
"""What a run read at each site: (rows, width) on its device and in its dtype, or reduced."""
