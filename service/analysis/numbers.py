"""Ratios as they leave: a number, or None where it does not exist."""

from __future__ import annotations

import math

from torch import Tensor


def ratio(part: float, whole: float) -> float | None:
    """part / whole, or None where the whole is zero."""
    return part / whole if whole else None


def finite(value: float) -> float | None:
    """The value, or None where it is infinite or not a number."""
    return value if math.isfinite(value) else None


def ratios(values: Tensor) -> list[float | None]:
    """Values of (count), None for those that are infinite or not a number."""
    return [finite(value) for value in values.tolist()]
