"""The implicit update of one transformer block at one position.

A block whose input is the residual stream r computes

    h  = r + post_attn(attn(pre_attn(r)))       resid_mid
    n  = pre_mlp(h), or pre_mlp(r)              mlp_in
    φ  = act(n·W + b)                           mlp_act
    r' = h + post_mlp(φ·W_out)                  resid_post

where pre_… are norms and post_… are norms or the identity; biases may be absent. In a serial block
the MLP reads h, in a parallel one r. With subscript C for the run that has the context,

    Δn = n_C − n,   Δh = h_C − h,
    ΔW = nᵀ (Δn·W) / ‖n‖²     so that   n·(W + ΔW) = n_C·W     exactly,

where W (d_model, d_mlp) is the MLP's first weight. Adding ΔW to W and Δh to the block's output
makes the run without context produce the block output of the run with it, again exactly. ΔW has
rank 1; among all matrices with that property it has the least Frobenius norm. There is no ε in the
denominator, because it would break the identity: where ‖n‖ = 0 the update is not finite, which
`is_finite` says.

The proof uses only that the MLP's output is a function of n·W, so it holds for every kind of norm
and of attention:

    A gated MLP has two first weights with one input, φ = act(n·W_gate) ⊙ (n·W_up). Side by side
    they are one matrix W = [W_gate | W_up], and ΔW is their two updates side by side. It has rank 1
    with one input factor, and ‖ΔW‖² = ‖ΔW_gate‖² + ‖ΔW_up‖².
    In a parallel block n does not depend on attention. If the two runs have the same r, then Δn = 0
    and ΔW = 0, and Δh alone is the update.
    Weights can carry Δh in place of a bias: `output_update` says how.

Sources, rewritten in the row convention y = x·W:
    The theorem: Dherin et al., *Learning without training* (arXiv 2507.16003).
    Residual stream, layer norm, any block, all positions: Innocenti & Achour (arXiv 2512.11255).
    Gated blocks, and all layers in sequence, each update formed on the stream that the patched
    layers below produce: Goldwaser et al. (arXiv 2511.17864, Theorem 2 and Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from service.theory.finite import exists, finite
from service.theory.output_update import OutputUpdate
from service.theory.projection import Projection, product
from service.theory.rank_one import Index, RankOne
from service.theory.vectors import norm

NOISE_FACTOR = 64.0
"""‖Δn‖ below this multiple of ε·‖n‖ is rounding. It is a floor: rows of pretrained models that are
about to become attention sinks have more noise (docs/theory.md, "Rounding")."""


@dataclass(frozen=True)
class ImplicitUpdate:
    """The effect of the context on one block, as an update for each position of a batch.

    Args:
        weight: ΔW of the MLP's first weight, factors (..., d_model) and (..., d_mlp).
        bias: Δh, added to the block's output, (..., d_model).
        out: The update of the second weight (and gain) that carries Δh; the bias is then not
            added. None: the bias carries Δh.
    """

    weight: RankOne
    bias: Tensor
    out: OutputUpdate | None = None

    def to(self, dtype: torch.dtype) -> ImplicitUpdate:
        """The same update rounded to `dtype`."""
        out = None if self.out is None else self.out.to(dtype)
        return ImplicitUpdate(self.weight.to(dtype), self.bias.to(dtype), out)

    def __getitem__(self, index: Index) -> ImplicitUpdate:
        """The update, or the batch of updates, at `index` of the first leading dimension."""
        out = None if self.out is None else self.out[index]
        return ImplicitUpdate(self.weight[index], self.bias[index], out)

    def with_output(self, output: Tensor) -> ImplicitUpdate:
        """The same update with another output factor of ΔW."""
        return replace(self, weight=RankOne(self.weight.input, output))

    def without_weight(self) -> ImplicitUpdate:
        """Δh without ΔW."""
        return self.with_output(torch.zeros_like(self.weight.output))

    def without_bias(self) -> ImplicitUpdate:
        """ΔW without Δh, whichever weights carry it."""
        return ImplicitUpdate(self.weight, torch.zeros_like(self.bias))


def implicit_update(
    n: Tensor, n_context: Tensor, h: Tensor, h_context: Tensor, w_in: Projection
) -> ImplicitUpdate:
    """The update under which the baseline run computes what the run with context computes.

    Args:
        n: The MLP's input in the baseline run (mlp_in), (..., d_model).
        n_context: The same with context, (..., d_model).
        h: The residual stream after attention in the baseline run (resid_mid), (..., d_model).
        h_context: The same with context, (..., d_model).
        w_in: The MLP's first weight.

    Differences are formed in float64. The output factor is a product in the dtype of `w_in`, at
    least float32; input factor and bias are float64. Nothing is read back from the device;
    `is_finite` says whether the update exists.
    """
    return ImplicitUpdate(update_on_base(n, n, n_context, w_in), h_context.double() - h.double())


def update_on_base(n: Tensor, n_from: Tensor, n_to: Tensor, w_in: Projection) -> RankOne:
    """The change of weight `nᵀ((n_to − n_from)·W) / ‖n‖²`, with n as the base of both readings.

    Updates on one base add up: a to b plus b to c equals a to c.

    Args:
        n: The base, (..., d_model).
        n_from: The reading before, (..., d_model).
        n_to: The reading after, (..., d_model).
        w_in: The MLP's first weight.

    Its norm is NaN where ‖n‖ is zero, and infinite or NaN where a reading is.
    """
    base = n.double()
    output = product(n_to.double() - n_from.double(), w_in)
    return RankOne(base / (base * base).sum(-1, keepdim=True), output)


def concatenated(updates: Sequence[ImplicitUpdate]) -> ImplicitUpdate:
    """Batches of updates as one batch. All have a change of the second weight, or none has."""
    weight = RankOne.concatenated([one.weight for one in updates])
    bias = torch.cat([one.bias for one in updates])
    outs = [one.out for one in updates if one.out is not None]
    if not outs:
        return ImplicitUpdate(weight, bias)
    gains = [out.gain for out in outs if out.gain is not None]
    out_weight = RankOne.concatenated([out.weight for out in outs])
    return ImplicitUpdate(
        weight, bias, OutputUpdate(out_weight, torch.cat(gains) if gains else None)
    )


def is_finite(update: ImplicitUpdate) -> Tensor:
    """Whether an update exists, 0-dimensional bool on the update's device.

    False where ‖n‖, or ‖φ_C‖ of an update of the second weight, is zero, and where a value is
    infinite or NaN.
    """
    formed = exists(update.weight.input) & finite(magnitude(update))
    return formed if update.out is None else formed & exists(update.out.weight.input)


def magnitude(update: ImplicitUpdate) -> Tensor:
    """The sum of the norms of an update's parts, float64, (...); it is finite where each part is.

    It is NaN where ‖n‖, or ‖φ_C‖ of an update of the second weight, is zero.
    """
    size = update.weight.norm + norm(update.bias)
    if update.out is None:
        return size
    size = size + update.out.weight.norm
    return size if update.out.gain is None else size + norm(update.out.gain)


def below_noise(n: Tensor, n_context: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether ‖Δn‖ < 64·ε·‖n‖, so that ΔW is rounding; bool, (...).

    Args:
        n: The MLP's input in the baseline run, (..., d_model).
        n_context: The same with context, (..., d_model).
        dtype: The dtype of the forward passes, which gives ε.
    """
    difference = norm(n_context.double() - n.double())
    return difference < NOISE_FACTOR * torch.finfo(dtype).eps * norm(n)
