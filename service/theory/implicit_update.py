"""The implicit update of one transformer block at one position.

A block reads the MLP's input `n = ln_2(h)` from the residual stream `h` after attention, and writes
`h + MLP(n)`. With subscript C for the run that has the context,

    Δn = n_C − n,   Δh = h_C − h,
    ΔW = nᵀ (Δn·W) / ‖n‖²     so that   n·(W + ΔW) = n_C·W     exactly,

where W (d_model, d_mlp) is the MLP's first weight. Adding ΔW to W and Δh to the block's output
makes the run without context produce the block output of the run with it, again exactly. ΔW has
rank 1; among all matrices with that property it has the least Frobenius norm. There is no ε in the
denominator, because it would break the identity: ‖n‖ = 0 is refused instead.

Sources, rewritten in GPT-2's row convention:
    The theorem: Dherin et al., *Learning without training* (arXiv 2507.16003).
    Residual stream, layer norm, any block, all positions: Innocenti & Achour (arXiv 2512.11255).
    All layers in sequence, each update formed on the stream that the patched layers below produce:
    Goldwaser et al. (arXiv 2511.17864, Theorem 2 and Algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from service.theory.rank_one import RankOne
from service.theory.vectors import norm

NOISE_FACTOR = 32.0
"""‖Δn‖ below this multiple of ε·‖n‖ is rounding: n itself carries 6 to 17 ε of noise in float32."""


class NonFinite(ArithmeticError):
    """A vector from which an update is formed is zero, infinite or NaN."""


@dataclass(frozen=True)
class ImplicitUpdate:
    """The effect of the context on one block, as an update for each position of a batch.

    Args:
        weight: ΔW of the MLP's first weight, factors (..., d_model) and (..., d_mlp).
        bias: Δh, added to the block's output, (..., d_model).
    """

    weight: RankOne
    bias: Tensor

    def to(self, dtype: torch.dtype) -> ImplicitUpdate:
        """The same update rounded to `dtype`."""
        return ImplicitUpdate(self.weight.to(dtype), self.bias.to(dtype))

    def with_output(self, output: Tensor) -> ImplicitUpdate:
        """The same update with another output factor of ΔW."""
        return ImplicitUpdate(RankOne(self.weight.input, output), self.bias)

    def without_weight(self) -> ImplicitUpdate:
        """Δh without ΔW."""
        return self.with_output(torch.zeros_like(self.weight.output))

    def without_bias(self) -> ImplicitUpdate:
        """ΔW without Δh."""
        return ImplicitUpdate(self.weight, torch.zeros_like(self.bias))


def implicit_update(
    n: Tensor, n_context: Tensor, h: Tensor, h_context: Tensor, w_in: Tensor
) -> ImplicitUpdate:
    """The update under which the baseline run computes what the run with context computes.

    Args:
        n: The MLP's input in the baseline run (mlp_in), (..., d_model).
        n_context: The same with context, (..., d_model).
        h: The residual stream after attention in the baseline run (resid_mid), (..., d_model).
        h_context: The same with context, (..., d_model).
        w_in: The MLP's first weight as it is multiplied, `n·w_in`, (d_model, d_mlp).

    Differences are formed in float64. The output factor is a product in the dtype of `w_in`, at
    least float32; input factor and bias are float64.

    Raises:
        NonFinite: ‖n‖ is zero, or a value is infinite or NaN.
    """
    bias = h_context.double() - h.double()
    if not bool(torch.isfinite(bias).all()):
        raise NonFinite("an update has an infinite value")
    return ImplicitUpdate(update_on_base(n, n, n_context, w_in), bias)


def update_on_base(n: Tensor, n_from: Tensor, n_to: Tensor, w_in: Tensor) -> RankOne:
    """The change of weight `nᵀ((n_to − n_from)·W) / ‖n‖²`, with n as the base of both readings.

    Updates on one base add up: a to b plus b to c equals a to c.

    Args:
        n: The base, (..., d_model).
        n_from: The reading before, (..., d_model).
        n_to: The reading after, (..., d_model).
        w_in: The MLP's first weight, (d_model, d_mlp).

    Raises:
        NonFinite: ‖n‖ is zero, or a value is infinite or NaN.
    """
    base = n.double()
    squared = (base * base).sum(-1, keepdim=True)
    if not bool(((squared > 0) & torch.isfinite(squared)).all()):
        raise NonFinite("the baseline's mlp_in has norm 0 or is not finite: ΔW does not exist")
    dtype = torch.promote_types(w_in.dtype, torch.float32)
    output = (n_to.double() - n_from.double()).to(dtype) @ w_in.to(dtype)
    if not bool(torch.isfinite(output).all()):
        raise NonFinite("an update has an infinite value")
    return RankOne(base / squared, output)


def below_noise(n: Tensor, n_context: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether ‖Δn‖ < 32·ε·‖n‖, so that ΔW is rounding; bool, (...).

    Args:
        n: The MLP's input in the baseline run, (..., d_model).
        n_context: The same with context, (..., d_model).
        dtype: The dtype of the forward passes, which gives ε.
    """
    difference = norm(n_context.double() - n.double())
    return difference < NOISE_FACTOR * torch.finfo(dtype).eps * norm(n)
