"""The tolerance, verdict and improvement of an equivalence check."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.theory import Scope, gate, improvement, kl_gate, tolerance, verdict

NAN, INF = math.nan, math.inf
GATES: list[tuple[Scope, torch.dtype, float]] = [
    ("projection", torch.float32, 1e-5),
    ("block", torch.float32, 2e-5),
    ("model", torch.float32, 1e-5),
    ("projection", torch.float64, 1e-12),
    ("block", torch.float64, 1e-12),
    ("model", torch.float64, 1e-12),
]


@pytest.mark.parametrize(("scope", "dtype", "gate"), GATES)
@pytest.mark.parametrize(
    ("h", "h_context", "expected", "factor"),
    [
        (3.0, 4.0, 7.0, 1.0),
        (3.0, 4.0, 100.0, 1.0),
        (3.0, 4.0, 3.5, 2.0),
        (3000.0, 4.0, 10.0, 300.4),
        (4.0, 3000.0, 10.0, 300.4),
    ],
)
def test_tolerance_is_the_gate_times_the_cancellation(
    scope: Scope,
    dtype: torch.dtype,
    gate: float,
    h: float,
    h_context: float,
    expected: float,
    factor: float,
) -> None:
    """The tolerance is gate × max(1, (‖h‖ + ‖h_C‖)/‖expected‖), with the gates of theory.md 9."""
    along = torch.tensor([0.6, 0.8], dtype=torch.float64)
    found = tolerance(scope, dtype, h * along, h_context * along.flip(0), expected * along)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(gate * factor, rel=1e-12)


@pytest.mark.parametrize(("scope", "dtype", "expected"), GATES)
def test_gates_equal_those_of_theory_section_9(
    scope: Scope, dtype: torch.dtype, expected: float
) -> None:
    """In float32 the gates are projection 1e-5, block 2e-5, logits 1e-5 and KL 1e-8; in float64 all
    are 1e-12."""
    assert gate(scope, dtype) == expected
    assert kl_gate(dtype) == (1e-8 if dtype == torch.float32 else 1e-12)


def test_tolerance_is_computed_per_position() -> None:
    """A large residual stream at one position raises the tolerance of that position only."""
    h = torch.tensor([[1.0, 0.0], [1000.0, 0.0]])
    found = tolerance("block", torch.float32, h, torch.ones(2, 2), torch.full((2, 2), 5.0))
    assert float(found[0]) == pytest.approx(2e-5, rel=1e-12)
    assert float(found[1]) > 100 * float(found[0])


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
    ("error", "unpatched", "dtype", "expected"),
    [
        (1e-6, 0.5, torch.float32, 5e5),
        (0.0, 0.5, torch.float32, 0.5 * 2**23),
        (1e-9, 0.5, torch.float32, 0.5 * 2**23),
        (0.0, 0.5, torch.float64, 0.5 * 2**52),
        (1e-9, 0.5, torch.float64, 5e8),
        (0.5, 0.5, torch.float32, 1.0),
        (1e-6, 0.0, torch.float32, 0.0),
    ],
)
def test_improvement_divides_by_at_least_epsilon(
    error: float, unpatched: float, dtype: torch.dtype, expected: float
) -> None:
    """The improvement is unpatched over patched error, the latter at least the dtype's ε."""
    assert improvement(error, unpatched, dtype) == pytest.approx(expected, rel=1e-12)
