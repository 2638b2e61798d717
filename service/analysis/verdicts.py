"""Verdicts: a computed vector against the vector with context, and whether the difference says
anything.

A check holds up to a tolerance. It says something only if the context matters: with an unpatched
error of at most ten tolerances it is vacuous.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from schemas.common import UNSET, Unset
from schemas.equivalence_checks import Check, Scope, Verdict
from service.analysis.factors import finite
from service.theory import discrepancy, improvement

GATES: Mapping[tuple[Scope, torch.dtype], float] = {
    ("projection", torch.float32): 1e-5,
    ("block", torch.float32): 2e-5,
    ("model", torch.float32): 1e-5,
    ("projection", torch.float64): 1e-12,
    ("block", torch.float64): 1e-12,
    ("model", torch.float64): 1e-12,
}
"""Relative error allowed before cancellation. Measured worst cases are 7 to 1,000 times smaller."""

KL_GATES: Mapping[torch.dtype, float] = {torch.float32: 1e-8, torch.float64: 1e-12}
"""KL(with context ‖ patched) that scope `model` allows, in nats."""

VACUOUS_FACTOR = 10.0


def verdict(relative_error: float, unpatched: float, allowed: float) -> Verdict:
    """The verdict on one relative error, given the unpatched one and the tolerance."""
    if not relative_error <= allowed:
        return "fails"
    return "vacuous" if unpatched <= VACUOUS_FACTOR * allowed else "holds"


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict for all: `fails` before `vacuous` before `holds`."""
    return "fails" if "fails" in verdicts else "vacuous" if "vacuous" in verdicts else "holds"


def compared(expected: Tensor, actual: Tensor, unpatched: Tensor, bounds: Tensor) -> Tensor:
    """The figures of checks, in the order in which `checks_of_layer` needs them, (..., 6), float64.

    Args:
        expected: The compared vector with context, (..., width).
        actual: The same vector of the patched run.
        unpatched: The same vector without the patch.
        bounds: The tolerance, (...).
    """
    found, bare = discrepancy(expected, actual), discrepancy(expected, unpatched)
    return torch.stack(
        [
            found.magnitude,
            found.error,
            found.relative_error,
            found.max_abs_error,
            bare.relative_error,
            bounds,
        ],
        -1,
    )


def checks_of_layer(
    layer: int,
    positions: Sequence[int],
    figures: Sequence[Sequence[float]],
    dtype: torch.dtype,
    controls: Mapping[str, Sequence[float | None]],
    reasons: Mapping[str, str],
    bias_only: Sequence[float | None] | Unset = UNSET,
    vacuous_by_theorem: str | Unset = UNSET,
) -> list[Check]:
    """Check each position of one layer.

    Args:
        layer: The layer, from 0.
        positions: Indices into the query.
        figures: Those of `compared` at each position.
        dtype: The dtype of the compared vectors.
        controls: Relative errors of each control, one per position.
        reasons: Reason for each control that is None.
        bias_only: Relative errors with Δh at the attention output and no ΔW.
        vacuous_by_theorem: The reason why the checks must be vacuous, if they must.
    """
    checks = []
    for i, (position, of_position) in enumerate(zip(positions, figures, strict=True)):
        magnitude, error, relative, largest, bare, bound = of_position
        told = verdict(relative, bare, bound)
        checks.append(
            Check(
                layer=layer,
                position=position,
                magnitude=magnitude,
                error=error,
                relative_error=finite(relative),
                max_abs_error=largest,
                tolerance=bound,
                unpatched_relative_error=finite(bare),
                improvement=finite(improvement(relative, bare, dtype)),
                vacuous=told == "vacuous",
                vacuous_reason=vacuous_by_theorem if told == "vacuous" else UNSET,
                verdict=told,
                holds=told == "holds",
                controls={name: errors[i] for name, errors in controls.items()} or UNSET,
                control_reasons=reasons or UNSET,
                bias_only_relative_error=bias_only[i] if bias_only else UNSET,
            )
        )
    return checks


def bounds_of(allowed: float | None, derived: Tensor) -> Tensor:
    """The requested tolerance, or else the derived one, of each position."""
    return derived if allowed is None else torch.full_like(derived, allowed)
