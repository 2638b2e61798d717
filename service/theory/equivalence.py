"""When an equivalence check holds: the tolerance, and what a verdict needs beside it.

The identity is exact, so a check measures rounding. Its tolerance is a gate, by scope and dtype,
times

    max(1, (‖h‖ + ‖h_C‖) / ‖expected‖),

since Δh = h_C − h loses what cancels; the factor matters where the baseline's stream is far larger
than the compared vector, as for GPT-2's first position. A check says something only where the
context matters: with an unpatched error of no more than ten tolerances it is vacuous.
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
"""KL(with context ‖ patched) allowed, in nats."""

VACUOUS_FACTOR = 10.0


def gate(scope: Scope, dtype: torch.dtype) -> float:
    """The relative error that a scope allows in float32 or float64, before cancellation."""
    return GATES[scope, dtype]


def kl_gate(dtype: torch.dtype) -> float:
    """The KL divergence that scope `model` allows in float32 or float64, in nats."""
    return KL_GATES[dtype]


def tolerance(
    scope: Scope, dtype: torch.dtype, h: Tensor, h_context: Tensor, expected: Tensor
) -> Tensor:
    """The relative error up to which a check holds, float64, (...).

    Args:
        scope: What is compared.
        dtype: The dtype in which both passes were computed: float32 or float64.
        h: resid_mid in the baseline run, (..., d_model).
        h_context: resid_mid with context, (..., d_model).
        expected: The compared vector with context, (..., width).
    """
    cancellation = (norm(h) + norm(h_context)) / norm(expected)
    return GATES[scope, dtype] * cancellation.clamp_min(1.0)


def verdict(relative_error: float, unpatched: float, allowed: float) -> Verdict:
    """`fails` beyond the tolerance, `vacuous` where the unpatched run nearly passes, or `holds`."""
    if not relative_error <= allowed:
        return "fails"
    return "vacuous" if unpatched <= VACUOUS_FACTOR * allowed else "holds"


def improvement(relative_error: float, unpatched: float, dtype: torch.dtype) -> float:
    """Unpatched / patched error, the latter floored at the dtype's ε: never infinite."""
    return unpatched / max(relative_error, torch.finfo(dtype).eps)
