"""Ratios as they leave."""

from __future__ import annotations

import pytest
import torch
from service.analysis.numbers import ratio, ratios


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(1.0, 4.0, 0.25), (0.0, 4.0, 0.0), (1.0, 0.0, None), (0.0, 0.0, None), (1.0, -2.0, -0.5)],
)
def test_a_ratio_to_nothing_does_not_exist(
    part: float, whole: float, expected: float | None
) -> None:
    """Part over whole; None, not infinity, where the whole is zero."""
    assert ratio(part, whole) == expected


def test_only_finite_ratios_leave() -> None:
    """NaN and both infinities become None, all else stays, in its place."""
    values = torch.tensor([1.5, float("nan"), float("inf"), -float("inf"), 0.0, -2.0])
    assert ratios(values.double()) == [1.5, None, None, None, 0.0, -2.0]
