"""Read-backs: the only place where anything waits for the device.

On a GPU each read-back waits for all work that was launched before it. So a question has one for
each pack: what was computed is copied together with the conditions under which it is valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Condition:
    """A condition that is tested when something that depends on it is read back.

    Args:
        value: A tensor on the device. A bool holds if all of it is true, a float if all is finite.
        error: Raised if it does not hold.
        tested: Whether it was tested.
        failed: The error that was found.
    """

    value: Tensor
    error: Exception
    tested: bool = False
    failed: Exception | None = None

    def failure(self, value: Tensor) -> Exception | None:
        """The error if the value, on the host, does not hold."""
        return None if self.holds(value) else self.error

    def holds(self, value: Tensor) -> bool:
        """Whether the value, on the host, holds."""
        return bool((value if value.dtype == torch.bool else torch.isfinite(value)).all())


@dataclass
class Count:
    """How often the host waited for the device."""

    total: int = 0


READ_BACKS = Count()


def fetch(tensors: Sequence[Tensor], conditions: Iterable[Condition] = ()) -> list[Tensor]:
    """Copy tensors to the host together, and test the conditions that were not tested before.

    Args:
        tensors: Tensors of any shapes and dtypes, on one device.
        conditions: Conditions of everything that the tensors were formed from.

    Raises:
        Exception: The error of the first condition that does not hold.
    """
    copied, failure = _fetched(tensors, conditions)
    if failure is not None:
        raise failure
    return copied


def require(conditions: Iterable[Condition]) -> None:
    """Raise the error of the first condition that does not hold, of those not tested before.

    Whoever tested a condition before received its error then, and may have handled it.
    """
    fetch((), [one for one in conditions if not one.tested])


def hold(conditions: Iterable[Condition]) -> bool:
    """Whether all conditions hold; waits only if one is untested.

    An untested one that does not hold stays untested, because this raises no error: `require` must
    still do so.
    """
    given = list(conditions)
    untested = [one for one in given if not one.tested]
    failure = _fetched((), given)[1]
    for one in untested:
        one.tested = one.failed is None
    return failure is None


def numbers(values: Tensor) -> Any:
    """The numbers of a tensor that `fetch` has returned, as nested lists."""
    return values.tolist()


def vectors(values: Tensor) -> Sequence[Tensor]:
    """The vectors (width) of a tensor (..., width), in order."""
    return values.flatten(0, -2).unbind()


def _fetched(
    tensors: Sequence[Tensor], conditions: Iterable[Condition]
) -> tuple[list[Tensor], Exception | None]:
    """The tensors on the host, and the error of the first condition that does not hold."""
    given = list(dict.fromkeys(conditions))
    untested = [one for one in given if not one.tested]
    parts = [*tensors, *(one.value for one in untested)]
    copied: list[Tensor] = []
    if parts:
        READ_BACKS.total += 1
        copied = _copied(parts)
    for one, value in zip(untested, copied[len(tensors) :], strict=True):
        one.tested, one.failed = True, one.failure(value)
    return copied[: len(tensors)], next((one.failed for one in given if one.failed), None)


def _copied(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the host, copied as one piece."""
    if tensors[0].device.type == "cpu":
        return list(tensors)
    flat = [one.contiguous().view(-1).view(torch.uint8) for one in tensors]
    pieces = torch.split(torch.cat(flat).cpu(), [len(one) for one in flat])
    # A piece may begin anywhere, and a wider dtype needs an aligned beginning.
    return [
        piece.clone().view(one.dtype).view(one.shape)
        for piece, one in zip(pieces, tensors, strict=True)
    ]
