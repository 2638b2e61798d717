"""One patch that is exact for several positions at once.

With the rows of m positions stacked, N (m, d_model) of the baseline and N_C with context,

    ΔW_in  = N⁺ (N_C − N) W_in       so that   N (W_in + ΔW_in) = N_C W_in,
    ΔW_out = Φ_C⁺ (H_C − H)          so that   Φ_C (W_out + ΔW_out) = Φ_C W_out + H_C − H,

where Φ_C is mlp_act with context, which the patched first weight produces. Both have rank m at
most, are exact if the rows are independent, and have the least Frobenius norm. A single bias cannot
replace ΔW_out, because each position has its own Δh.

Sources: for m = 1, ΔW_in is the update of Dherin et al. (arXiv 2507.16003). An update for every
position: Innocenti & Achour (arXiv 2512.11255). Rank-1 patches of both MLP weights, without a bias:
Goldwaser et al. (arXiv 2511.17864). One matrix for many tokens by least squares: Mazzawi et al.
(arXiv 2510.08734); here the least-squares residual is zero, or the patch is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from service.theory.finite import NonFinite

MAX_CONDITION = 1e6
"""Largest σ_max/σ_min of the stacked rows; above it they count as dependent."""


class DependentRows(ArithmeticError):
    """The stacked rows are not independent, so no single patch is exact for all of them.

    Args:
        condition: σ_max/σ_min of the rows.
    """

    def __init__(self, condition: float) -> None:
        super().__init__("the positions' vectors are not independent: no joint patch is exact")
        self.condition = condition


@dataclass(frozen=True)
class LowRank:
    """The matrix `inputᵀ·output`, kept as its factors.

    Args:
        input: (rank, d_in).
        output: (rank, d_out).
        condition: σ_max/σ_min of the rows for which it was solved.
    """

    input: Tensor
    output: Tensor
    condition: float

    @property
    def singular_values(self) -> Tensor:
        """The singular values that can be non-zero, in descending order, float64, (rank)."""
        _, r_in = torch.linalg.qr(self.input.double().T)
        _, r_out = torch.linalg.qr(self.output.double().T)
        values: Tensor = torch.linalg.svdvals(r_in @ r_out.T)
        return values

    @property
    def norm(self) -> Tensor:
        """Frobenius norm, float64."""
        return self.singular_values.square().sum().sqrt()

    def apply(self, x: Tensor) -> Tensor:
        """The product `x·M` for rows x (rows, d_in): (rows, d_out)."""
        return (x @ self.input.T) @ self.output

    def dense(self) -> Tensor:
        """The dense matrix, (d_in, d_out)."""
        return self.input.T @ self.output

    def to(self, dtype: torch.dtype) -> LowRank:
        """The same factors rounded to `dtype`."""
        return LowRank(self.input.to(dtype), self.output.to(dtype), self.condition)


@dataclass(frozen=True)
class JointUpdate:
    """One patch of both weights for several positions.

    Args:
        w_in: ΔW_in, factors (m, d_model) and (m, d_mlp).
        w_out: ΔW_out, factors (m, d_mlp) and (m, d_model).
    """

    w_in: LowRank
    w_out: LowRank

    def to(self, dtype: torch.dtype) -> JointUpdate:
        """The same update rounded to `dtype`."""
        return JointUpdate(self.w_in.to(dtype), self.w_out.to(dtype))

    def with_output(self, output: Tensor) -> JointUpdate:
        """The same update with another output factor of ΔW_in."""
        return JointUpdate(replace(self.w_in, output=output), self.w_out)

    def without_weight(self) -> JointUpdate:
        """ΔW_out without ΔW_in; ΔW_out carries the Δh."""
        return self.with_output(torch.zeros_like(self.w_in.output))

    def without_bias(self) -> JointUpdate:
        """ΔW_in without ΔW_out."""
        nothing = torch.zeros_like(self.w_out.output)
        return JointUpdate(self.w_in, replace(self.w_out, output=nothing))


def least_norm(rows: Tensor, targets: Tensor) -> LowRank:
    """The matrix M of least Frobenius norm with `rows·M = targets`, solved in float64.

    Args:
        rows: (m, d_in).
        targets: (m, d_out).

    Raises:
        DependentRows: σ_min < 1e-6·σ_max.
        NonFinite: A value is infinite or NaN.
    """
    stacked, wanted = rows.double(), targets.double()
    if not bool(torch.isfinite(stacked).all() and torch.isfinite(wanted).all()):
        raise NonFinite("a joint update has an infinite value")
    if len(rows) > rows.shape[1]:
        raise DependentRows(math.inf)
    u, s, v = torch.linalg.svd(stacked, full_matrices=False)
    condition = float(s[0] / s[-1]) if bool(s[-1] > 0) else math.inf
    if not condition <= MAX_CONDITION:
        raise DependentRows(condition)
    return LowRank((u / s) @ v, wanted, condition)


def joint_update(
    n: Tensor,
    n_context: Tensor,
    h: Tensor,
    h_context: Tensor,
    act_context: Tensor,
    w_in: Tensor,
) -> JointUpdate:
    """The patch of both weights that is exact at each of m positions.

    Args:
        n: mlp_in in the baseline run, (m, d_model).
        n_context: The same with context.
        h: resid_mid in the baseline run, (m, d_model).
        h_context: The same with context.
        act_context: mlp_act with context, (m, d_mlp).
        w_in: The MLP's first weight, (d_model, d_mlp).

    Raises:
        DependentRows: The positions' vectors are not independent.
        NonFinite: A value is infinite or NaN.
    """
    shift = (n_context.double() - n.double()) @ w_in.double()
    return JointUpdate(
        w_in=least_norm(n, shift),
        w_out=least_norm(act_context, h_context.double() - h.double()),
    )
