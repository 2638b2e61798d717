"""Indices of a pack: they are built on the host, and copied to the device together."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from service.engine.segments import Index


def copied(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host to the device without waiting for the device."""
    pinned = values.pin_memory() if device.type == "cuda" else values
    return pinned.to(device, non_blocking=True)


class Indices:
    """Indices of a pack, collected on the host and copied to the device together."""

    def __init__(self) -> None:
        self._parts: list[Index] = []
        self._size = 0
        self._copied = torch.empty(0, dtype=torch.int64)

    def add(self, values: Index) -> slice:
        """Add indices, and return where they will be."""
        start = self._size
        self._parts.append(values)
        self._size += len(values)
        return slice(start, self._size)

    def copy(self, device: torch.device) -> None:
        """Copy all indices to the device."""
        if self._parts:
            self._copied = copied(torch.from_numpy(np.concatenate(self._parts)), device)

    def __getitem__(self, place: slice) -> Tensor:
        return self._copied[place]
