"""Read-backs: the only place where the walk waits for the device.

On a GPU each read-back waits for all work that was launched before it, so a pack has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Condition(NamedTuple):
    """A condition that is tested after the pack.

    Args:
        holds: 0-dimensional bool on the device.
        error: Raised if it does not hold.
    """

    holds: Tensor
    error: Exception


def require(conditions: Sequence[Condition]) -> None:
    """Raise the error of the first condition that does not hold. It waits for the device once."""
    if not conditions:
        return
    held = torch.stack([condition.holds for condition in conditions]).tolist()
    for holds, (_, error) in zip(held, conditions, strict=True):
        if not holds:
            raise error
