"""The path of a weight as the context is read, step by step.

With n_i the MLP's input after the i-th part of the context (n_0: none of it) and the query at its
position,

    ΔW_i = n_0ᵀ ((n_i − n_0) W) / ‖n_0‖²,      W_i = W + ΔW_i,
    step_i = W_{i+1} − W_i = n_0ᵀ ((n_{i+1} − n_i) W) / ‖n_0‖² = −η G_i,
    η = 1/‖n_0‖²,   G_i = n_0ᵀ ((n_i − n_{i+1}) W),   loss_i(W) = trace(G_iᵀ W).

So reading a part is a step of gradient descent on a loss that is linear in W. This restates a
telescoping sum: the steps add up to ΔW of the whole context. Every matrix has the same input
factor, so all figures are computed from rows.

Source: the theorem and its gradient form are those of Dherin et al. (arXiv 2507.16003, the section
on implicit learning dynamics).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from service.theory.projection import Projection, product
from service.theory.vectors import dot, norm


@dataclass(frozen=True)
class Trajectory:
    """The path of a weight, float64. Leading dimensions are a batch of paths.

    Figures of steps are (..., steps). Where ‖n_0‖ is zero or a reading is not finite, there is no
    path, and `norm` or `eta` is NaN or infinite.

    Args:
        eta: η = 1/‖n_0‖², (...).
        norm: ‖ΔW_{i+1}‖, after the step.
        step_norm: ‖W_{i+1} − W_i‖ = η ‖G_i‖.
        gradient_norm: ‖G_i‖.
        cosine_to_final: cos(ΔW_{i+1}, ΔW of the whole context); NaN where either is zero.
        loss_before: loss_i(W_i).
        loss_after: loss_i(W_{i+1}).
        telescoping_error: ‖Σ steps − ΔW‖ / ‖ΔW‖, (...); NaN where ΔW is zero.
    """

    eta: Tensor
    norm: Tensor
    step_norm: Tensor
    gradient_norm: Tensor
    cosine_to_final: Tensor
    loss_before: Tensor
    loss_after: Tensor
    telescoping_error: Tensor


def trajectory(readings: Tensor, w_in: Projection) -> Trajectory:
    """The path of a weight over the readings of a position.

    Args:
        readings: n_0 to n_k, (..., steps + 1, d_model).
        w_in: The MLP's first weight, (d_model, d_mlp).
    """
    n = readings.double()
    first, last = n[..., :1, :], n[..., -1:, :]
    length = norm(first)
    # One product serves all figures: n_i·W is n_0·W plus the sum of the steps before it.
    differences = torch.cat([n.diff(dim=-2), last - first, first], -2)
    products = product(differences, w_in).double()
    steps, whole, start = torch.split(products, [products.shape[-2] - 2, 1, 1], -2)
    shifts = steps.cumsum(-2)
    read = torch.cat([start, start + shifts], -2)
    gradient = -steps
    final = norm(whole)
    return Trajectory(
        eta=length[..., 0] ** -2,
        norm=norm(shifts) / length,
        step_norm=norm(steps) / length,
        gradient_norm=norm(steps) * length,
        cosine_to_final=(dot(shifts, whole) / (norm(shifts) * final)).clamp(-1.0, 1.0),
        loss_before=dot(gradient, read[..., :-1, :]),
        loss_after=dot(gradient, read[..., 1:, :]),
        telescoping_error=(norm(shifts[..., -1:, :] - whole) / final)[..., 0],
    )
