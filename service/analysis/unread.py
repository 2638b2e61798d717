"""Results that are still on the device, and the one read-back that finishes several of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from service.analysis.pieces import Piece, divided, placed
from service.engine import Activations, Condition, Question, fetch

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a result.

    Args:
        tensors: Tensors to read back.
        finish: Forms the part from these tensors on the host.
        conditions: The conditions under which it is valid.
    """

    tensors: Sequence[Tensor]
    finish: Callable[[Sequence[Tensor]], Any]
    conditions: Sequence[Condition] = ()


@dataclass(frozen=True, eq=False)
class Unread(Generic[T_co]):
    """A result that is still on the device.

    Args:
        parts: Its parts.
        whole: Forms the result from its finished parts.
        conditions: The conditions of everything that it is formed from.
    """

    parts: Sequence[Part]
    whole: Callable[[list[Any]], T_co]
    conditions: Sequence[Condition] = ()


def in_pieces(
    cut: Sequence[Piece],
    form: Callable[[Piece], Part],
    lengths: Sequence[int],
    received: Sequence[Activations],
) -> Question[Unread[list[list[Any]]]]:
    """Form entries piece by piece: those of each pair, layer by layer.

    Args:
        cut: The pieces.
        form: Forms a part that is finished as [layer][row].
        lengths: Number of rows of each pair.
        received: The activations that the entries are formed from.
    """
    parts = []
    for piece in cut:
        parts.append(form(piece))
        yield ()
    conditions = [condition for run in received for condition in run.conditions]
    return Unread(
        parts,
        lambda found: divided(placed(list(zip(cut, found, strict=True))), lengths),
        conditions,
    )


def read(*results: Unread[Any]) -> Question[tuple[Any, ...]]:
    """Read results back together, and finish them part by part.

    Raises:
        Exception: The error of the first condition that does not hold. Those of the activations
            come first, because their messages name the layer.
    """
    parts = [part for result in results for part in result.parts]
    conditions = [one for result in results for one in result.conditions]
    conditions += [one for part in parts for one in part.conditions]
    copied = iter(fetch([tensor for part in parts for tensor in part.tensors], conditions))
    found: list[Any] = []
    for result in results:
        finished = []
        for part in result.parts:
            finished.append(part.finish([next(copied) for _ in part.tensors]))
            yield ()
        found.append(result.whole(finished))
    return tuple(found)
