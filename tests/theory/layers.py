"""A transformer block without attention, as random tensors on which the theory is tested."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EXACT = 1e-12
"""Largest relative error at which an identity counts as exact in float64."""


@dataclass(frozen=True)
class Dense:
    """A first weight as one matrix, (width, hidden)."""

    matrix: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix."""
        return self.matrix.dtype

    def product(self, x: Tensor) -> Tensor:
        """`x·W` of rows, in the dtype of x."""
        assert x.ndim == 2
        return x @ self.matrix.to(x.dtype)


@dataclass(frozen=True, eq=False)
class Layer:
    """ln_2 and an MLP with random weights, and the residual stream at some positions in two runs.

    Args:
        gain: Gain of ln_2, (width).
        shift: Bias of ln_2, (width).
        w_in: First weight of the MLP, (width, hidden).
        b_in: First bias of the MLP, (hidden).
        w_out: Second weight of the MLP, (hidden, width).
        h: resid_mid of the baseline run, (..., width).
        h_context: The same with context.
    """

    gain: Tensor
    shift: Tensor
    w_in: Tensor
    b_in: Tensor
    w_out: Tensor
    h: Tensor
    h_context: Tensor

    def ln_2(self, h: Tensor) -> Tensor:
        """Layer norm written out: (h − mean)/sqrt(var + ε) · gain + shift."""
        centred = h - h.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + 1e-5) * self.gain + self.shift

    @property
    def n(self) -> Tensor:
        """mlp_in of the baseline run."""
        return self.ln_2(self.h)

    @property
    def n_context(self) -> Tensor:
        """mlp_in with context."""
        return self.ln_2(self.h_context)

    def output(self, h: Tensor, weight: Tensor | None = None) -> Tensor:
        """resid_post from resid_mid, with a first weight per row, (..., width, hidden)."""
        n, w_in = self.ln_2(h), self.w_in if weight is None else weight
        pre = torch.einsum("...i,...io->...o", n, w_in.expand(*n.shape[:-1], *self.w_in.shape))
        return h + F.gelu(pre + self.b_in, approximate="tanh") @ self.w_out


def random_layer(seed: int, *batch: int, width: int = 12, hidden: int = 20) -> Layer:
    """A float64 layer with all tensors drawn from one seed."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Layer(
        gain=1.0 + 0.3 * draw(width),
        shift=0.2 * draw(width),
        w_in=draw(width, hidden) / width**0.5,
        b_in=draw(hidden),
        w_out=draw(hidden, width) / hidden**0.5,
        h=draw(*batch, width),
        h_context=3.0 * draw(*batch, width),
    )


def relative(actual: Tensor, expected: Tensor) -> float:
    """The largest relative error over the rows of (..., width)."""
    return float(((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
