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
from dataclasses import dataclass

import torch
from torch import Tensor

from service.theory.finite import NonFinite
from service.theory.projection import Projection, product
from service.theory.static_update import LowRank, StaticUpdate

MAX_CONDITION = 1e4
"""Largest σ_max/σ_min of the stacked rows; above it they count as dependent. Rounding of the rows
is multiplied by it: in float32, logits were off by 8e-4 at 2e4."""


class DependentRows(ArithmeticError):
    """The stacked rows are not independent, so no single patch is exact for all of them.

    Args:
        condition: σ_max/σ_min of the rows.
    """

    def __init__(self, condition: float) -> None:
        super().__init__(
            "The vectors of the positions are not independent, so no single patch is exact at all "
            "of them. Ask for fewer positions."
        )
        self.condition = condition


@dataclass(frozen=True, eq=False)
class JointUpdate(StaticUpdate):
    """One patch of both weights for several positions.

    Args:
        w_in: ΔW_in, factors (m, d_model) and (m, d_mlp).
        w_out: ΔW_out, factors (m, d_mlp) and (m, d_model).
        conditions: σ_max/σ_min of the rows for which each of them was solved.
    """

    w_in: LowRank
    w_out: LowRank
    conditions: tuple[float, float] = (1.0, 1.0)


def least_norm(rows: Tensor, targets: Tensor) -> tuple[LowRank, float]:
    """The matrix M of least Frobenius norm with `rows·M = targets`, solved in float64.

    Its second result is σ_max/σ_min of the rows.

    Args:
        rows: (m, d_in).
        targets: (m, d_out).

    Raises:
        DependentRows: σ_min < 1e-4·σ_max.
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
    return LowRank((u / s) @ v, wanted), condition


def joint_update(
    n: Tensor,
    n_context: Tensor,
    h: Tensor,
    h_context: Tensor,
    act_context: Tensor,
    w_in: Projection,
) -> JointUpdate:
    """The patch of both weights that is exact at each of m positions.

    Differences are formed in float64. Their product with `w_in` has its dtype, at least float32.

    Args:
        n: mlp_in in the baseline run, (m, d_model).
        n_context: The same with context.
        h: resid_mid in the baseline run, (m, d_model).
        h_context: The same with context.
        act_context: mlp_act with context, (m, d_mlp).
        w_in: The MLP's first weight.

    Raises:
        DependentRows: The positions' vectors are not independent.
        NonFinite: A value is infinite or NaN.
    """
    shift = product(n_context.double() - n.double(), w_in)
    w_in_update, w_in_condition = least_norm(n, shift)
    w_out_update, w_out_condition = least_norm(act_context, h_context.double() - h.double())
    return JointUpdate(
        w_in=w_in_update, w_out=w_out_update, conditions=(w_in_condition, w_out_condition)
    )
