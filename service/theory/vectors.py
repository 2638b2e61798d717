"""Norms and products of vectors along the last dimension, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm ‖x‖ of x (..., width): (...), float64."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
    return length


def dot(x: Tensor, y: Tensor) -> Tensor:
    """The product x·y of x and y (..., width): (...), float64."""
    return (x.double() * y.double()).sum(-1)
