"""Vectors from which an update cannot be formed."""

from __future__ import annotations

import torch
from torch import Tensor

from service.theory.rank_one import RankOne


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


def require_formed(weight: RankOne, vector: str) -> None:
    """Require that a change of weight exists; this reads values back from the device.

    Args:
        weight: ΔW, whose input factor is v/‖v‖².
        vector: The name of v, for the message.

    Raises:
        NonFinite: ‖v‖ is zero, or a value is infinite or NaN.
    """
    if not bool(exists(weight.input)):
        raise NonFinite(f"{vector} has norm 0 or is not finite: the update does not exist")
    if not bool(finite(weight.output)):
        raise NonFinite("an update has an infinite value")
