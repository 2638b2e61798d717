"""Δh carried by the MLP's second weight, for blocks that have no bias at their output.

Let φ_C be the input of the MLP's second weight (mlp_act) in the run with context, and y = φ·W_out.
If no norm follows the MLP, adding

    ΔW_out = φ_Cᵀ Δh / ‖φ_C‖²

to W_out has the same effect as adding Δh to the block's output, because the patched first weight
gives φ = φ_C. ΔW_out has rank 1.

Where an RMS norm N(y) = g ⊙ y / sqrt(rms(y)² + ε) follows, with rms(y)² the mean of the squares of
y, the norm must return m* = m_C + Δh, where m_C = N(y_C). The gain changes too, because N(y)/g has
the same length for every y, apart from the effect of ε:

    t = m*/g                                 the direction of the new y
    where g_j = 0 or |t_j| > κ:              t_j := κ·sign(m*_j)·sign(g_j),   g_j := m*_j/t_j
    where m*_j = 0:                          t_j := 0, and g_j stays
    y' = t·rms(y_C)/rms(t)                   as long as y_C, so ε has the same effect
    ΔW_out = φ_Cᵀ (y' − y_C) / ‖φ_C‖²
    gain = c·g,   c = rms(t)·sqrt(rms(y_C)² + ε)/rms(y_C)

with κ = 8 and sign(0) = 1 for a gain. The lifted entries are those that no y of moderate size
reaches: trained models have gains of exactly 0. If rms(y_C) is 0, any positive rms of y' will do,
and 1 is used. If m* is 0, so are y' and the gain.

Sources: rank-1 patches of both MLP weights, and a patch of the gain of a norm after the MLP:
Goldwaser et al. (arXiv 2511.17864). Their patch of the gain alone divides Δh by N(y_C)/g, which can
be arbitrarily small; here y' sets the direction and the gain sets the length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from service.theory.finite import exists, finite
from service.theory.rank_one import Index, RankOne

LIFT = 8.0
"""κ: the largest |t_j|. Above it the gain is replaced, so that no entry of y' dwarfs the others."""


@dataclass(frozen=True)
class OutputUpdate:
    """Δh carried by the MLP's second weight, and by the gain of a norm after it.

    Args:
        weight: ΔW of the MLP's second weight, factors (..., d_mlp) and (..., d_model).
        gain: The gain by which the norm after the MLP multiplies under the patch, (..., d_model);
            None: no norm follows.
        lifted: Entries of the gain that were replaced, not only scaled, bool, (..., d_model); None:
            no norm follows.
    """

    weight: RankOne
    gain: Tensor | None = None
    lifted: Tensor | None = None

    @property
    def is_finite(self) -> Tensor:
        """Whether every value is finite and the input factor exists; 0-dimensional bool."""
        values = [self.weight.output, *([] if self.gain is None else [self.gain])]
        return exists(self.weight.input) & finite(*values)

    def to(self, dtype: torch.dtype) -> OutputUpdate:
        """The same update rounded to `dtype`."""
        gain = None if self.gain is None else self.gain.to(dtype)
        return OutputUpdate(self.weight.to(dtype), gain, self.lifted)

    def __getitem__(self, index: Index) -> OutputUpdate:
        """The update, or the batch of updates, at `index` of the first leading dimension."""
        return OutputUpdate(
            self.weight[index],
            None if self.gain is None else self.gain[index],
            None if self.lifted is None else self.lifted[index],
        )


def output_update(act_context: Tensor, shift: Tensor) -> OutputUpdate:
    """The change of the second weight that adds `shift` to its product with `act_context`.

    Args:
        act_context: φ_C, mlp_act with context, (..., d_mlp).
        shift: Δh, (..., d_model).

    The factors are float64. Nothing is read back from the device; `is_finite` says whether the
    update exists.
    """
    act = act_context.double()
    return OutputUpdate(RankOne(act / act.square().sum(-1, keepdim=True), shift.double()))


def post_norm_update(
    act_context: Tensor,
    out_context: Tensor,
    normed_context: Tensor,
    shift: Tensor,
    gain: Tensor,
    eps: float,
) -> OutputUpdate:
    """The change of the second weight and of the gain that adds `shift` to the norm's output.

    Args:
        act_context: φ_C, mlp_act with context, (..., d_mlp).
        out_context: y_C, the input of the norm with context, (..., d_model).
        normed_context: m_C, the output of the norm with context (mlp_out), (..., d_model).
        shift: Δh, (..., d_model).
        gain: g, by which the norm multiplies, (d_model).
        eps: ε, which the norm adds to the mean of the squares.

    Factors and gain are float64. Nothing is read back from the device; `is_finite` says whether the
    update exists.
    """
    out, g = out_context.double(), gain.double()
    target = normed_context.double() + shift.double()
    t = (target / g).masked_fill(target == 0, 0.0)
    lifted = t.abs() > LIFT  # t is infinite where g is 0
    t = torch.where(lifted, LIFT * target.sign() * torch.where(g < 0, -1.0, 1.0), t)
    g = torch.where(lifted, target / t, g)
    length, size = _or_one(_rms(out)), _rms(t)
    moved = t * (length / _or_one(size))
    scale = size * (length.square() + eps).sqrt() / length
    weight = output_update(act_context, moved - out).weight
    return OutputUpdate(weight, scale * g, lifted)


def _rms(x: Tensor) -> Tensor:
    """The root of the mean square of x (..., width): (..., 1)."""
    return x.square().mean(-1, keepdim=True).sqrt()


def _or_one(length: Tensor) -> Tensor:
    """The length, or 1 where it is zero."""
    return torch.where(length == 0, 1.0, length)
