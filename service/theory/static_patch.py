"""One patch of an MLP's second weight for many rows, by ridge regression.

Let mlp_act of m rows be Φ (m, d_mlp), and T (m, d_model) what the block's output of each row should
gain. With weights w of the rows, X = √w·Φ and Y = √w·T,

    ΔW = argmin Σᵢ wᵢ‖φᵢΔW − tᵢ‖² + λ‖ΔW‖² = Xᵀ(XXᵀ + λI)⁻¹Y = (XᵀX + λI)⁻¹XᵀY,

with λ = ρ·mean‖φᵢ‖². The first form solves an (m, m) system, the second a (d_mlp, d_mlp) one.
With V the first r right singular vectors of the action XΔW (m, d_model), ΔW·V·Vᵀ has rank r, and of
all matrices of rank r its action on the rows is nearest to that of ΔW (Eckart & Young).

A static patch is fitted: it is exact for none of its rows.

Sources: one matrix for many tokens by least squares: Mazzawi et al. (arXiv 2510.08734); ridge
regression of reduced rank: Mukherjee & Zhu, *Reduced rank ridge regression* (2011). The mean
difference of a block's output is the steering vector of contrastive activation addition: Rimsky et
al. (arXiv 2312.06681).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from service.theory.static_update import LowRank, StaticUpdate

LEAST_RIDGE = 1e-10
"""Smallest λ relative to the largest diagonal entry of the weighted Gram matrix. It keeps the
system of dependent rows positive definite in float64, whatever their weights."""


@dataclass(frozen=True)
class Fitted:
    """A fitted update.

    Args:
        update: ΔW of the second weight, or a bias; float64.
        norm: Its Frobenius norm, (), float64.
        rank: Rank of ΔW; 0 for a bias.
        kept_energy: Share of ‖XΔW‖² that truncation kept, (), float64; 1 if ‖XΔW‖ is 0. None for a
            bias.
    """

    update: StaticUpdate
    norm: Tensor
    rank: int = 0
    kept_energy: Tensor | None = None


def output_ridge(act: Tensor, gap: Tensor, weights: Tensor, ridge: float, rank: int) -> Fitted:
    """Fit ΔW of the second weight to rows, and truncate it to a rank.

    Args:
        act: mlp_act, (m, d_mlp).
        gap: What each row's block output should gain, (m, d_model).
        weights: Weight of each row's squared error, (m).
        ridge: ρ, that is, λ relative to the mean of ‖row‖². λ is at least `LEAST_RIDGE` relative to
            the largest diagonal entry of the weighted Gram matrix.
        rank: Maximum rank.

    Returns:
        The update. Its factors and its norm are NaN if the system is not positive definite.
    """
    rows, root = act.double(), weights.double().sqrt()[:, None]
    penalty = ridge * rows.square().sum(-1).mean()
    x, y = rows * root, gap.double() * root
    dual = len(x) <= x.shape[1]
    gram = x @ x.T if dual else x.T @ x
    # In the dual form ΔW = Xᵀ·solved is never formed: it would be as large as the second weight.
    solved, failed = _solve(gram, penalty, y if dual else x.T @ y)
    action = (gram if dual else x) @ solved
    values, vectors = _right_singular(action)
    kept = min(rank, len(x), action.shape[1])
    basis = vectors[:, :kept]
    factor = x.T @ (solved @ basis) if dual else solved @ basis
    factor = factor.masked_fill(failed, torch.nan)
    energy, total = values[:kept].sum(), values.sum()
    share = torch.where(total > 0, energy / total, torch.ones_like(total))
    update = LowRank(factor.T.contiguous(), basis.T.contiguous())
    # The columns of V are orthonormal, so ‖ΔW·V·Vᵀ‖ = ‖ΔW·V‖.
    return Fitted(StaticUpdate(w_out=update), factor.norm(), kept, share)


def mean_output(gap: Tensor) -> Fitted:
    """The mean of what the rows' block outputs should gain, (m, d_model), as a bias."""
    bias = gap.double().mean(0)
    return Fitted(StaticUpdate(bias=bias), bias.norm())


def randomised(fitted: Fitted, seed: int) -> StaticUpdate:
    """The control: an update with random output factors, or a random bias, of the same norm.

    Args:
        fitted: The update whose input factors and norm it has.
        seed: Determines the draw.
    """
    w_out, bias = fitted.update.w_out, fitted.update.bias
    if w_out is None:
        assert bias is not None
        random = _drawn(bias, seed)
        return StaticUpdate(bias=random * (fitted.norm / random.norm()))
    random = _drawn(w_out.output, seed)
    # ‖AᵀB‖² = tr(AAᵀ·BBᵀ), without a QR decomposition of either factor.
    square = ((w_out.input @ w_out.input.T) * (random @ random.T)).sum()
    return StaticUpdate(w_out=LowRank(w_out.input, random * (fitted.norm / square.sqrt())))


def _drawn(like: Tensor, seed: int) -> Tensor:
    """Standard normal numbers of this shape on this device, which a seed draws alike anywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)


def _solve(gram: Tensor, penalty: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solve (gram + penalty·I)·S = right for a positive semidefinite gram.

    Returns:
        S, and whether the factorisation failed, (), bool. Where it failed, S is 0.
    """
    # Where all rows are 0, the least positive number still gives ΔW = 0.
    least = (LEAST_RIDGE * gram.diagonal().max()).clamp_min(torch.finfo(torch.float64).tiny)
    system = gram.clone()
    system.diagonal().add_(torch.maximum(penalty, least))
    # `cholesky` would wait for the device to tell whether it succeeded.
    factor, info = torch.linalg.cholesky_ex(system)
    failed = info != 0
    # Zeros, because the eigendecomposition that follows would raise an error for NaN.
    return torch.cholesky_solve(right, factor).masked_fill(failed, 0.0), failed


def _right_singular(action: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values in descending order, (d), and right singular vectors as columns."""
    # In float64 the eigenvectors of the Gram matrix are accurate enough for a truncation, and they
    # take a fifth of the time of an SVD.
    values, vectors = torch.linalg.eigh(action.T @ action)
    return values.flip(0).clamp_min(0), vectors.flip(1)
