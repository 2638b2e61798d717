"""One check: a computed vector against the one with context, and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.analysis.numbers import finite, ratios
from service.theory import Verdict, discrepancy, improvement, verdict


@dataclass(frozen=True)
class Check:
    """One layer at one position.

    Args:
        layer: From 0 up.
        position: Index into the query.
        magnitude: ‖expected‖ of the compared vector, as the run with context has it.
        error: ‖actual − expected‖.
        relative_error: error / magnitude.
        max_abs_error: max |actual − expected|.
        tolerance: The relative error up to which the check holds.
        unpatched_relative_error: The same without the patch that is checked.
        improvement: Unpatched / patched error, the latter at least the dtype's ε.
        vacuous: Whether the unpatched run is within ten tolerances, so that nothing can be told.
        verdict: `holds`, `fails` or `vacuous`.
        holds: Whether the verdict is the first.
        controls: Relative errors of runs that are patched otherwise, where asked for.
        control_reasons: Why a control could not be formed, where one could not.
    """

    layer: int
    position: int
    magnitude: float
    error: float
    relative_error: float | None
    max_abs_error: float
    tolerance: float
    unpatched_relative_error: float | None
    improvement: float | None
    vacuous: bool
    verdict: Verdict
    holds: bool
    controls: dict[str, float | None] | None = None
    control_reasons: dict[str, str] | None = None


def checks_of_layer(
    layer: int,
    positions: Sequence[int],
    expected: Tensor,
    actual: Tensor,
    unpatched: Tensor,
    bounds: Tensor,
    controls: Mapping[str, Sequence[float | None]],
    reasons: dict[str, str],
) -> list[Check]:
    """The check of each position in one layer.

    Args:
        layer: From 0 up.
        positions: Indices into the query.
        expected: The compared vector with context, (positions, width).
        actual: The same of the patched run.
        unpatched: The same without the patch.
        bounds: Each position's tolerance, (positions).
        controls: The relative errors of each control, by position.
        reasons: Why a control is None.
    """
    found = discrepancy(expected, actual)
    columns = zip(
        positions,
        found.magnitude.tolist(),
        found.error.tolist(),
        found.relative_error.tolist(),
        found.max_abs_error.tolist(),
        discrepancy(expected, unpatched).relative_error.tolist(),
        bounds.tolist(),
        strict=True,
    )
    checks = []
    for i, (position, magnitude, error, relative, largest, bare, bound) in enumerate(columns):
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
                improvement=finite(improvement(relative, bare, actual.dtype)),
                vacuous=told == "vacuous",
                verdict=told,
                holds=told == "holds",
                controls={name: errors[i] for name, errors in controls.items()} or None,
                control_reasons=reasons or None,
            )
        )
    return checks


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict for all: `fails` before `vacuous` before `holds`."""
    return "fails" if "fails" in verdicts else "vacuous" if "vacuous" in verdicts else "holds"


def relative_errors(expected: Tensor, actual: Tensor) -> list[float | None]:
    """‖actual − expected‖ / ‖expected‖ of each row; None where it does not exist."""
    return ratios(discrepancy(expected, actual).relative_error)


def bounds_of(allowed: float | None, derived: Tensor) -> Tensor:
    """The tolerance that was asked for, or else the derived one, at each position."""
    return derived if allowed is None else torch.full_like(derived, allowed)
