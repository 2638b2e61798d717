"""Verdicts of equivalence checks: gates, tolerances, and one verdict for several checks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.common import UNSET
from schemas.equivalence_checks import Scope, Verdict
from service.analysis.verdicts import (
    GATES,
    KL_GATES,
    bounds_of,
    checks_of_layer,
    compared,
    verdict,
    worst,
)

NAN, INF = math.nan, math.inf
THEORY: list[tuple[Scope, torch.dtype, float]] = [
    ("projection", torch.float32, 1e-5),
    ("block", torch.float32, 2e-5),
    ("model", torch.float32, 1e-5),
    ("projection", torch.float64, 1e-12),
    ("block", torch.float64, 1e-12),
    ("model", torch.float64, 1e-12),
]


@pytest.mark.parametrize(("scope", "dtype", "expected"), THEORY)
def test_gates_equal_those_of_theory_section_9(
    scope: Scope, dtype: torch.dtype, expected: float
) -> None:
    """In float32 the gates are projection 1e-5, block 2e-5, logits 1e-5 and KL 1e-8; in float64 all
    are 1e-12."""
    assert GATES[scope, dtype] == expected
    assert KL_GATES[dtype] == (1e-8 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(
    ("error", "unpatched", "allowed", "expected"),
    [
        (3e-7, 0.8, 1e-5, "holds"),
        (1e-5, 0.8, 1e-5, "holds"),
        (0.0, 1.001e-4, 1e-5, "holds"),
        (1.001e-5, 0.8, 1e-5, "fails"),
        (0.8, 0.8, 1e-5, "fails"),
        (5e-5, 9e-5, 1e-5, "fails"),
        (0.0, 0.0, 1e-5, "vacuous"),
        (1e-6, 1e-4, 1e-5, "vacuous"),
        (1e-6, 9e-5, 1e-5, "vacuous"),
        (0.5, 0.8, 1.0, "vacuous"),
        (NAN, 0.8, 1e-5, "fails"),
        (INF, 0.8, 1e-5, "fails"),
        (NAN, NAN, 1e-5, "fails"),
        (NAN, 0.0, 1e-5, "fails"),
        (1e-7, 0.8, NAN, "fails"),
        (0.0, 0.8, 0.0, "holds"),
        (1e-16, 0.8, 0.0, "fails"),
    ],
)
def test_verdict_depends_on_both_errors_and_the_tolerance(
    error: float, unpatched: float, allowed: float, expected: str
) -> None:
    """An error above the tolerance or NaN fails; within it the unpatched error must exceed ten
    tolerances."""
    assert verdict(error, unpatched, allowed) == expected


@settings(derandomize=True, max_examples=50, deadline=None)
@given(*[st.floats(0.0, 10.0)] * 3)
def test_holds_implies_that_the_unpatched_run_fails(
    error: float, unpatched: float, allowed: float
) -> None:
    """`holds` implies that the unpatched run would have failed by more than a factor of ten."""
    if verdict(error, unpatched, allowed) == "holds":
        assert error <= allowed
        assert verdict(unpatched, unpatched, 10 * allowed) == "fails"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "vacuous"], "vacuous"),
        (["vacuous", "fails", "holds"], "fails"),
        (["vacuous"], "vacuous"),
    ],
)
def test_worst_verdict_is_fails_then_vacuous_then_holds(
    verdicts: list[Verdict], expected: Verdict
) -> None:
    """One verdict for several checks is `fails` before `vacuous` before `holds`."""
    assert worst(verdicts) == expected


def test_requested_tolerance_replaces_every_derived_one() -> None:
    """A requested tolerance applies at each position. Without one the derived tolerances stay."""
    derived = torch.tensor([1e-5, 3e-5], dtype=torch.float64)
    assert bounds_of(None, derived).tolist() == derived.tolist()
    assert bounds_of(0.25, derived).tolist() == [0.25, 0.25]
    assert bounds_of(0.0, derived).tolist() == [0.0, 0.0]


def test_figures_that_are_not_finite_are_null() -> None:
    """‖actual − expected‖/‖expected‖ is null, and the check fails, if the expected row is zero."""
    expected = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    actual = torch.tensor([[3.0, 5.0], [0.0, 1.0], [0.0, 0.0]])
    figures = compared(expected, actual, actual, torch.ones(3)).tolist()
    found = checks_of_layer(0, [0, 1, 2], figures, torch.float32, {}, {})
    assert [one.relative_error for one in found] == [pytest.approx(0.2), None, None]
    assert [one.verdict for one in found] == ["vacuous", "fails", "fails"]


def test_check_of_each_position_has_its_own_figures() -> None:
    """Each check has the errors, tolerance, verdict and controls of its own position."""
    expected = torch.tensor([[3.0, 4.0], [0.0, 10.0], [6.0, 8.0]], dtype=torch.float64)
    actual = expected + torch.tensor([[0.0, 5e-6], [1.0, 0.0], [0.0, 0.0]])
    unpatched = expected + torch.tensor([[5.0, 0.0], [0.0, 10.0], [0.0, 1e-4]])
    bounds = torch.tensor([1e-5, 1e-5, 2e-5], dtype=torch.float64)
    controls = {"first": [0.5, None, 0.25]}
    reasons = {"first": "It cannot be formed."}
    figures = compared(expected, actual, unpatched, bounds).tolist()
    found = checks_of_layer(
        7, [4, 0, 2], figures, expected.dtype, controls, reasons, [1e-7, None, 0.0]
    )
    assert [one.layer for one in found] == [7, 7, 7]
    assert [one.position for one in found] == [4, 0, 2]
    assert [one.magnitude for one in found] == [5.0, 10.0, 10.0]
    assert [one.error for one in found] == pytest.approx([5e-6, 1.0, 0.0])
    assert [one.max_abs_error for one in found] == pytest.approx([5e-6, 1.0, 0.0])
    assert [one.relative_error for one in found] == pytest.approx([1e-6, 0.1, 0.0])
    assert [one.unpatched_relative_error for one in found] == pytest.approx([1.0, 1.0, 1e-5])
    assert [one.tolerance for one in found] == [1e-5, 1e-5, 2e-5]
    assert [one.verdict for one in found] == ["holds", "fails", "vacuous"]
    assert [one.holds for one in found] == [True, False, False]
    assert [one.vacuous for one in found] == [False, False, True]
    assert [one.controls for one in found] == [{"first": 0.5}, {"first": None}, {"first": 0.25}]
    assert [one.control_reasons for one in found] == [reasons] * 3
    assert [one.bias_only_relative_error for one in found] == [1e-7, None, 0.0]


def test_check_without_controls_leaves_their_fields_unset() -> None:
    """Without controls a check has no controls, no reasons and no bias-only error."""
    rows = torch.ones(1, 2)
    figures = compared(rows, rows, rows, torch.ones(1)).tolist()
    (found,) = checks_of_layer(0, [0], figures, rows.dtype, {}, {})
    assert found.controls is UNSET
    assert found.control_reasons is UNSET
    assert found.bias_only_relative_error is UNSET
