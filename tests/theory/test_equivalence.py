"""The tolerance and the improvement of an equivalence check."""

from __future__ import annotations

import pytest
import torch

from service.theory import improvement, tolerance


@pytest.mark.parametrize("gate", [1e-5, 2e-5, 1e-12])
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
    gate: float, h: float, h_context: float, expected: float, factor: float
) -> None:
    """The tolerance is gate × max(1, (‖h‖ + ‖h_C‖)/‖expected‖), in float64."""
    along = torch.tensor([0.6, 0.8], dtype=torch.float64)
    found = tolerance(gate, h * along, h_context * along.flip(0), expected * along)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(gate * factor, rel=1e-12)


def test_tolerance_is_computed_per_position() -> None:
    """A large residual stream at one position raises the tolerance of that position only."""
    h = torch.tensor([[1.0, 0.0], [1000.0, 0.0]])
    found = tolerance(2e-5, h, torch.ones(2, 2), torch.full((2, 2), 5.0))
    assert float(found[0]) == pytest.approx(2e-5, rel=1e-12)
    assert float(found[1]) > 100 * float(found[0])


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
