"""Agreement: two ways of computing must give one number before either is timed (theory.md 9)."""

from __future__ import annotations

from torch import Tensor

CAPTURED = 5e-6
"""Relative, of a vector that was captured, in float32."""


class Disagreement(Exception):
    """Both sides of a comparison computed different numbers, so its times would mean nothing."""


def agree_captured(what: str, one: Tensor, other: Tensor) -> None:
    """Two captures of one vector, (...).

    Raises:
        Disagreement: They differ by more than 5e-6 of its length.
    """
    _within(what, one, other, CAPTURED)


def agree_difference(
    what: str, one: Tensor, other: Tensor, with_context: Tensor, baseline: Tensor
) -> None:
    """Two values of a quantity that is formed from a difference of two vectors, (...).

    Args:
        what: Its name in the error.
        one: On one way.
        other: On the other.
        with_context: The vector that was subtracted from, (width).
        baseline: The vector that was subtracted, (width).

    Raises:
        Disagreement: They differ by more than the vectors' own 5e-6, times what cancels.
    """
    n, n_context = baseline.double(), with_context.double()
    cancellation = (n.norm() + n_context.norm()) / (n_context - n).norm()
    agree_cancelling(what, one, other, float(cancellation))


def agree_cancelling(what: str, one: Tensor, other: Tensor, cancellation: float) -> None:
    """The same where it is known how much cancels.

    Args:
        what: Its name in the error.
        one: On one way.
        other: On the other.
        cancellation: The vectors' lengths together, over that of their difference.

    Raises:
        Disagreement: They differ by more than the vectors' own 5e-6, times what cancels.
    """
    _within(what, one, other, CAPTURED * cancellation)


def _within(what: str, one: Tensor, other: Tensor, allowed: float) -> None:
    a, b = one.double().cpu(), other.double().cpu()
    error = float((a - b).norm() / b.norm())
    if not error <= allowed:
        raise Disagreement(f"{what} differs by {error:.1e}, allowed are {allowed:.1e}")
