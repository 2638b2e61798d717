"""The patched rows of a block: which rows have which changed weights.

Everything here is known before the first product. The changes of runs that follow another run are
formed in the block; those of runs with a given patch are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from schemas.equivalence_checks import Apply
from service.engine.indices import Indices
from service.engine.pack import Pack
from service.engine.run import Fixed, Follow
from service.engine.segments import Index
from service.theory import LowRank, StaticUpdate


class Group(NamedTuple):
    """Patched rows and the change of each.

    Args:
        rows: Indices into the rows that pass through the MLP.
        whose: Indices into changes.
    """

    rows: slice
    whose: slice


@dataclass(frozen=True)
class Product:
    """Rows that are multiplied by a weight with a change of each run's own.

    Args:
        factored: Rows to whose product with W that with the factors of ΔW is added.
        materialized: Rows that are multiplied by W + ΔW, each update by itself.
    """

    factored: Group
    materialized: tuple[tuple[int, slice], ...]


@dataclass(frozen=True)
class Carried:
    """Rows whose Δh the second weight carries. Their updates have a numbering of their own.

    Args:
        rows: The rows.
        product: The same rows by how ΔW_out is applied.
        source: The row that each update follows, an index into the rows that pass through the MLP.
        shift: The number of each such update among all updates, for its Δh.
    """

    rows: Group
    product: Product
    source: slice
    shift: slice


@dataclass(frozen=True)
class Following:
    """Rows of runs that follow another.

    Args:
        to, source: The rows that follow and the rows that they follow, indices into the rows that
            reach mlp_in.
        product: The runs' rows by how ΔW is applied.
        shifted: Rows to which Δh is added.
        carried: Rows whose Δh the second weight carries; None: none.
    """

    to: slice
    source: slice
    product: Product
    shifted: Group
    carried: Carried | None


@dataclass(frozen=True)
class Changes:
    """Given changes of one weight.

    Args:
        factors: The changes that are applied as factors. Their factors are stacked, so that rows of
            all runs are multiplied together.
        rows: Their rows.
        owner: The change that each of the stacked factors belongs to.
        dense: Each other change, and its rows.
    """

    factors: tuple[LowRank, ...]
    rows: Group
    owner: slice
    dense: tuple[tuple[LowRank, slice], ...]


@dataclass(frozen=True)
class Vectors:
    """Given vectors of width d_model, and the rows that each belongs to."""

    values: tuple[Tensor, ...]
    rows: Group


@dataclass(frozen=True)
class Given:
    """Rows of runs with a given patch.

    Args:
        w_in, w_out: The changes of the MLP's weights.
        bias: Vectors added at the block's output.
        gain: The gains of the norm after the MLP.
    """

    w_in: Changes
    w_out: Changes
    bias: Vectors
    gain: Vectors


@dataclass(frozen=True)
class Patching:
    """The patched rows of a block; None: there are none of this kind.

    `counts` has the index of each run in the pack whose patch changes the block, and the number of
    its rows that pass through the changed block.
    """

    following: Following | None
    given: Given | None
    counts: tuple[tuple[int, int], ...]


def patching(
    pack: Pack, indices: Indices, layer: int, rows: Index, through: Index
) -> Patching | None:
    """The patched rows of a block; None: none.

    Args:
        pack: The pack.
        indices: Receives the indices.
        layer: The block's layer.
        rows: The pack's rows that reach mlp_in.
        through: The pack's rows that pass through the MLP.
    """
    following = _following(pack, indices, layer, rows, through)
    given = _given(pack, indices, layer, through)
    if not following and not given:
        return None
    owners = pack.owner[through]
    rows_of = np.bincount(owners[owners >= 0], minlength=len(pack.patched))
    counts = [
        (run.run, int(count))
        for run, count in zip(pack.patched, rows_of, strict=True)
        if layer <= run.depth and _changes(run.patch, layer)
    ]
    return Patching(following, given, tuple(counts))


def _changes(patch: Follow | Fixed, layer: int) -> bool:
    """Whether a patch changes a layer."""
    if isinstance(patch, Follow):
        return True
    update = patch.updates.get(layer)
    return update is not None and update.changes_something


class _Whose:
    """The number of the change of each row, of the runs of one kind."""

    def __init__(self, pack: Pack, indices: Indices, through: Index, of_run: Index) -> None:
        self._indices = indices
        # The last entry is for rows of no patched run, whose owner is -1.
        self._whose = np.append(of_run, -1)[pack.owner[through]]

    def group(self, chosen: Sequence[int], names: Index | None = None) -> Group:
        """The rows of chosen changes.

        Args:
            chosen: Numbers of changes.
            names: The number that each change has in the group; None: its place in `chosen`.
        """
        rows = np.flatnonzero(np.isin(self._whose, chosen))
        whose = self._whose[rows]
        named = np.searchsorted(chosen, whose) if names is None else names[whose]
        return Group(self._indices.add(rows), self._indices.add(named))


def _following(
    pack: Pack, indices: Indices, layer: int, rows: Index, through: Index
) -> Following | None:
    here = [
        (i, run, run.patch)
        for i, run in enumerate(pack.patched)
        if layer <= run.depth and isinstance(run.patch, Follow)
    ]
    if not here:
        return None
    of_run = np.full(len(pack.patched), -1)
    of_run[[i for i, *_ in here]] = np.arange(len(here))
    whose = _Whose(pack, indices, through, of_run)
    carries = [patch.form == "weights" for *_, patch in here]

    def product(chosen: Sequence[int], names: Index) -> Product:
        factored = [i for i in chosen if here[i][2].apply == "factored"]
        others = [i for i in chosen if i not in factored]
        return Product(
            whose.group(factored, names),
            tuple((int(names[i]), whose.group([i], names).rows) for i in others),
        )

    names = np.arange(len(here))
    carried = None
    if any(carries):
        chosen = [i for i, carrying in enumerate(carries) if carrying]
        number = np.cumsum(carries) - 1
        carried = Carried(
            rows=whose.group(chosen, number),
            product=product(chosen, number),
            source=indices.add(through.searchsorted([here[i][1].source_row for i in chosen])),
            shift=indices.add(np.flatnonzero(carries)),
        )
    return Following(
        to=indices.add(rows.searchsorted([run.row for _, run, _ in here])),
        source=indices.add(rows.searchsorted([run.source_row for _, run, _ in here])),
        product=product(range(len(here)), names),
        shifted=whose.group([i for i, carrying in enumerate(carries) if not carrying], names),
        carried=carried,
    )


def _given(pack: Pack, indices: Indices, layer: int, through: Index) -> Given | None:
    updates: dict[tuple[StaticUpdate, Apply], int] = {}
    of_run = np.full(len(pack.patched), -1)
    for i, run in enumerate(pack.patched):
        if layer <= run.depth and isinstance(run.patch, Fixed):
            update = run.patch.updates.get(layer)
            if update is not None:
                # Runs with one update object are multiplied together.
                of_run[i] = updates.setdefault((update, run.patch.apply), len(updates))
    if not updates:
        return None
    whose = _Whose(pack, indices, through, of_run)

    def changes(of: Callable[[StaticUpdate], LowRank | None]) -> Changes:
        found = [(i, of(update), apply) for (update, apply), i in updates.items()]
        factored = {i: one for i, one, apply in found if one is not None and apply == "factored"}
        ranks = [one.rank for one in factored.values()]
        return Changes(
            factors=tuple(factored.values()),
            rows=whose.group(list(factored)),
            owner=indices.add(np.repeat(np.arange(len(ranks)), ranks)),
            dense=tuple(
                (one, whose.group([i]).rows)
                for i, one, _ in found
                if one is not None and i not in factored
            ),
        )

    def vectors(of: Callable[[StaticUpdate], Tensor | None]) -> Vectors:
        found = {i: of(update) for (update, _), i in updates.items()}
        held = {i: one for i, one in found.items() if one is not None}
        return Vectors(tuple(held.values()), whose.group(list(held)))

    return Given(
        w_in=changes(lambda update: update.w_in),
        w_out=changes(lambda update: update.w_out),
        bias=vectors(lambda update: update.bias),
        gain=vectors(lambda update: update.gain),
    )
