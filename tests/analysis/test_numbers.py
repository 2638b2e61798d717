"""Ratios in answers."""

from __future__ import annotations

import pytest
import torch
from service.analysis.numbers import ratio, ratios


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(1.0, 4.0, 0.25), (0.0, 4.0, 0.0), (1.0, 0.0, None), (0.0, 0.0, None), (1.0, -2.0, -0.5)],
)
def test_ratio_to_zero_is_none(part: float, whole: float, expected: float | None) -> None:
    """A ratio to zero is None, not infinity."""
    assert ratio(part, whole) == expected


def test_non_finite_ratios_become_none() -> None:
    """NaN and infinities become None, and finite values stay in their places."""
    values = torch.tensor([1.5, float("nan"), float("inf"), -float("inf"), 0.0, -2.0])
    assert ratios(values.double()) == [1.5, None, None, None, 0.0, -2.0]
