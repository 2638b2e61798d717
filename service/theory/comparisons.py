"""Comparisons of two vectors or of two distributions, computed in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from service.theory.vectors import dot, norm


@dataclass(frozen=True)
class Comparison:
    """One activation with the context and in the baseline run; each field (...), float64.

    Args:
        norm_with_context: ‖v_C‖.
        norm_baseline: ‖v‖.
        norm_difference: ‖v_C − v‖.
        cosine: v_C·v / (‖v_C‖ ‖v‖); NaN where either vector is zero.
    """

    norm_with_context: Tensor
    norm_baseline: Tensor
    norm_difference: Tensor
    cosine: Tensor


@dataclass(frozen=True)
class Discrepancy:
    """The distance of a computed vector from the expected one; each field (...), float64.

    Args:
        magnitude: ‖expected‖.
        error: ‖actual − expected‖.
        relative_error: error / magnitude; infinite or NaN where the magnitude is zero.
        max_abs_error: max |actual − expected|.
    """

    magnitude: Tensor
    error: Tensor
    relative_error: Tensor
    max_abs_error: Tensor


def compare(baseline: Tensor, with_context: Tensor) -> Comparison:
    """Norms and cosine of vectors (..., width)."""
    v, v_context = baseline.double(), with_context.double()
    length, length_context = norm(v), norm(v_context)
    cosine = dot(v, v_context) / (length * length_context)
    return Comparison(length_context, length, norm(v_context - v), cosine.clamp(-1.0, 1.0))


def discrepancy(expected: Tensor, actual: Tensor) -> Discrepancy:
    """Errors of `actual` against `expected`, both (..., width)."""
    truth = expected.double()
    difference = actual.double() - truth
    magnitude, error = norm(truth), norm(difference)
    return Discrepancy(magnitude, error, error / magnitude, difference.abs().amax(-1))


def kl_divergence(logits: Tensor, other_logits: Tensor) -> Tensor:
    """KL(p‖q) in nats, p and q the softmax of two rows of logits: (..., vocab) to (...); ≥ 0."""
    log_p = torch.log_softmax(logits.double(), -1)
    log_q = torch.log_softmax(other_logits.double(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0)
