"""The tolerance of an equivalence check, and the verdict that it leads to.

The identity is exact, so the error that a check measures is rounding. Its tolerance is a gate, by
scope and dtype, times

    max(1, (‖h‖ + ‖h_C‖) / ‖expected‖).

The factor allows for the cancellation in Δh = h_C − h. It matters where the baseline's residual
stream is far larger than the compared vector, as at GPT-2's first position. A check tells something
only where the context matters: it is vacuous if the unpatched error is at most ten tolerances.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from service.theory.vectors import norm

Scope = Literal["projection", "block", "model"]
Verdict = Literal["holds", "fails", "vacuous"]

GATES: dict[tuple[Scope, torch.dtype], float] = {
    ("projection", torch.float32): 1e-5,
    ("block", torch.float32): 2e-5,
    ("model", torch.float32): 1e-5,
    ("projection", torch.float64): 1e-12,
    ("block", torch.float64): 1e-12,
    ("model", torch.float64): 1e-12,
}
"""Relative error allowed, before cancellation. Measured worst cases lie 7 to 1,000 times below."""

KL_GATES = {torch.float32: 1e-8, torch.float64: 1e-12}
"""Allowed KL(with context ‖ patched), in nats."""

VACUOUS_FACTOR = 10.0


def gate(scope: Scope, dtype: torch.dtype) -> float:
    """The relative error that a scope allows in float32 or float64, before cancellation."""
    return GATES[scope, dtype]


def kl_gate(dtype: torch.dtype) -> float:
    """The KL divergence that the scope `model` allows in float32 or float64, in nats."""
    return KL_GATES[dtype]


def tolerance(
    scope: Scope, dtype: torch.dtype, h: Tensor, h_context: Tensor, expected: Tensor
) -> Tensor:
    """The largest relative error at which a check holds, float64, (...).

    Args:
        scope: The compared quantity.
        dtype: The dtype of both forward passes: float32 or float64.
        h: resid_mid in the baseline run, (..., d_model).
        h_context: resid_mid with context, (..., d_model).
        expected: The compared vector with context, (..., width).
    """
    cancellation = (norm(h) + norm(h_context)) / norm(expected)
    return GATES[scope, dtype] * cancellation.clamp_min(1.0)


def verdict(relative_error: float, unpatched: float, allowed: float) -> Verdict:
    """`fails` above the tolerance; else `vacuous` if the unpatched run nearly passes, or
    `holds`."""
    if not relative_error <= allowed:
        return "fails"
    return "vacuous" if unpatched <= VACUOUS_FACTOR * allowed else "holds"


def improvement(relative_error: float, unpatched: float, dtype: torch.dtype) -> float:
    """Unpatched over patched error, the latter at least the dtype's ε, so that it is finite."""
    return unpatched / max(relative_error, torch.finfo(dtype).eps)
