"""Vectors from which no update can be formed."""

from __future__ import annotations

import pytest
import torch

from service.theory.finite import exists, finite

ROWS = torch.ones(3, 4, dtype=torch.float64)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_value_in_any_tensor_is_not_finite(bad: float) -> None:
    """One NaN or infinity in one of several tensors of any shape makes them not finite."""
    spoilt = ROWS.clone()
    spoilt[2, 1] = bad
    assert bool(finite(ROWS, ROWS[0]))
    assert not bool(finite(ROWS[0], spoilt))
    assert not bool(exists(spoilt))


def test_zero_input_factor_does_not_exist() -> None:
    """An input factor of zeros comes from a squared norm that overflowed; single zeros are
    normal."""
    assert bool(exists(torch.eye(4)))
    assert not bool(exists(torch.stack([ROWS[0], torch.zeros_like(ROWS[0])])))


def test_no_positions_are_finite() -> None:
    """An update of no positions exists."""
    assert bool(exists(ROWS[:0]))
    assert bool(finite(ROWS[:0]))
