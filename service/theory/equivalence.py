"""The tolerance of an equivalence check.

The identity is exact, so a check measures rounding. Its tolerance is a gate, by scope and dtype,
times

    max(1, (‖h‖ + ‖h_C‖) / ‖expected‖),

because Δh = h_C − h loses what cancels. The factor matters if the baseline's stream is far larger
than the compared vector, as at GPT-2's first position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.theory.vectors import norm


def tolerance(gate: float, h: Tensor, h_context: Tensor, expected: Tensor) -> Tensor:
    """The relative error up to which a check holds, float64, (...).

    Args:
        gate: The relative error that is allowed before cancellation.
        h: resid_mid in the baseline run, (..., d_model).
        h_context: resid_mid with context, (..., d_model).
        expected: The compared vector with context, (..., width).
    """
    cancellation = (norm(h) + norm(h_context)) / norm(expected)
    return gate * cancellation.clamp_min(1.0)


def improvement(relative_error: float, unpatched: float, dtype: torch.dtype) -> float:
    """Unpatched / patched error. The patched error is at least the dtype's ε, so it is finite."""
    return unpatched / max(relative_error, torch.finfo(dtype).eps)
