"""The MLP's first weight, in any layout."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Projection(Protocol):
    """The matrix W (d_model, d_mlp) by which mlp_in is multiplied.

    A gated MLP has two first weights with one input. Side by side they are one matrix:
    W = [W_gate | W_up].
    """

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which W is kept."""

    def product(self, x: Tensor) -> Tensor:
        """`x·W` without a bias, (rows, d_model) to (rows, d_mlp), in the dtype of x.

        That dtype is W's, or a wider one.
        """


def product(x: Tensor, w_in: Projection) -> Tensor:
    """`x·W` in the dtype of W, at least float32: (..., d_model) to (..., width of W)."""
    dtype = torch.promote_types(w_in.dtype, torch.float32)
    rows = w_in.product(x.to(dtype).reshape(-1, x.shape[-1]))
    return rows.reshape(*x.shape[:-1], rows.shape[-1])
