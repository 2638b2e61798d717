"""Vectors from which an update cannot be formed.

Nothing here reads a value back from the device. The flags are tensors, and whoever reads an update
back tests them and raises `NonFinite`.
"""

from __future__ import annotations

import torch
from torch import Tensor


class NonFinite(ArithmeticError):
    """A vector from which an update is formed is zero, infinite or NaN."""


def finite(*values: Tensor) -> Tensor:
    """Whether no value is infinite or NaN; 0-dimensional bool on the values' device."""
    return torch.stack([torch.isfinite(part).all() for part in values]).all()


def exists(given: Tensor) -> Tensor:
    """Whether input factors v/‖v‖² exist, (..., d_in); 0-dimensional bool on their device.

    They are infinite or NaN where ‖v‖² is zero or v is not finite, and zero where ‖v‖² overflows.
    """
    return finite(given) & given.any(-1).all()
