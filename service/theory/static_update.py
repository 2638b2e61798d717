"""One change of a block's weights that acts on every row.

    ΔW_in  = A_inᵀ·B_in      of the MLP's first weights side by side, as `Block.w_in` has them
    ΔW_out = A_outᵀ·B_out    of the MLP's second weight
    Δb                       added at the block's output
    g*                       the gain by which a norm after the MLP multiplies, in place of g

Any of them may be missing. The update of one position is the case of rank 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from service.theory.implicit_update import ImplicitUpdate
from service.theory.rank_one import RankOne


@dataclass(frozen=True)
class LowRank:
    """The matrix `inputᵀ·output`, kept as its factors.

    Args:
        input: (rank, d_in).
        output: (rank, d_out).
    """

    input: Tensor
    output: Tensor

    @property
    def rank(self) -> int:
        """Number of rows of each factor."""
        return len(self.input)

    @property
    def norm(self) -> Tensor:
        """Frobenius norm, float64; NaN if a factor holds NaN or infinity."""
        _, r_in = torch.linalg.qr(self.input.double().T)
        _, r_out = torch.linalg.qr(self.output.double().T)
        size: Tensor = torch.linalg.matrix_norm(r_in @ r_out.T)
        return size

    def apply(self, x: Tensor) -> Tensor:
        """The product `x·M` for rows x (rows, d_in): (rows, d_out)."""
        return (x @ self.input.T) @ self.output

    def dense(self) -> Tensor:
        """The dense matrix, (d_in, d_out)."""
        return self.input.T @ self.output

    def to(self, dtype: torch.dtype) -> LowRank:
        """The same factors rounded to `dtype`."""
        return LowRank(self.input.to(dtype), self.output.to(dtype))


@dataclass(frozen=True, eq=False)
class StaticUpdate:
    """One change of a block's weights that acts on every row.

    Args:
        w_in: ΔW_in, factors (rank, d_model) and (rank, width of W); None: no change.
        w_out: ΔW_out, factors (rank, d_mlp) and (rank, d_model); None: no change.
        bias: Δb, added at the block's output, (d_model); None: nothing is added.
        gain: The gain by which the norm after the MLP multiplies, (d_model); None: its own.
    """

    w_in: LowRank | None = None
    w_out: LowRank | None = None
    bias: Tensor | None = None
    gain: Tensor | None = None

    @property
    def changes_something(self) -> bool:
        """Whether any part is there."""
        return any(part is not None for part in (self.w_in, self.w_out, self.bias, self.gain))

    def to(self, dtype: torch.dtype) -> Self:
        """The same update rounded to `dtype`."""
        return replace(
            self,
            w_in=None if self.w_in is None else self.w_in.to(dtype),
            w_out=None if self.w_out is None else self.w_out.to(dtype),
            bias=None if self.bias is None else self.bias.to(dtype),
            gain=None if self.gain is None else self.gain.to(dtype),
        )

    def scaled(self, scale: float, gain: Tensor | None = None) -> Self:
        """The update times a factor.

        Args:
            scale: The factor of ΔW_in, ΔW_out and Δb, and of the difference of the gains.
            gain: The resident gain, (d_model). An update with a gain needs it.

        Raises:
            ValueError: The update has a gain, and no resident gain is given.
        """
        if self.gain is not None and gain is None:
            raise ValueError("an update with a gain is scaled from the resident gain")
        return replace(
            self,
            w_in=None if self.w_in is None else _scaled(self.w_in, scale),
            w_out=None if self.w_out is None else _scaled(self.w_out, scale),
            bias=None if self.bias is None else self.bias * scale,
            gain=self.gain if gain is None or self.gain is None else gain.lerp(self.gain, scale),
        )


def static_updates(updates: ImplicitUpdate) -> list[StaticUpdate]:
    """The update of each position of a batch, as weights that act on every row.

    Args:
        updates: Updates of positions, factors (positions, width).
    """
    w_in, out = _matrices(updates.weight), updates.out
    if out is None:
        return [StaticUpdate(w, bias=b) for w, b in zip(w_in, updates.bias.unbind(), strict=True)]
    gains = [None] * len(w_in) if out.gain is None else out.gain.unbind()
    carried = zip(w_in, _matrices(out.weight), gains, strict=True)
    return [StaticUpdate(w, w_out, gain=gain) for w, w_out, gain in carried]


def _matrices(weights: RankOne) -> list[LowRank]:
    # Two operators for all positions, however many there are.
    parts = (factor.unsqueeze(1).unbind() for factor in (weights.input, weights.output))
    return [LowRank(*factors) for factors in zip(*parts, strict=True)]


def _scaled(weight: LowRank, scale: float) -> LowRank:
    return replace(weight, output=weight.output * scale)
