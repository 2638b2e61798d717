"""Figures in the form of an answer: a ratio that does not exist is null."""

from __future__ import annotations

import math

import pytest

from service.analysis.factors import finite, ratio, ratios


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(1.0, 4.0, 0.25), (0.0, 4.0, 0.0), (1.0, 0.0, None), (0.0, 0.0, None), (1.0, -2.0, -0.5)],
)
def test_ratio_is_none_if_the_whole_is_zero(
    part: float, whole: float, expected: float | None
) -> None:
    """`ratio` divides part by whole, and returns None instead of infinity if the whole is zero."""
    assert ratio(part, whole) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, 1.5),
        (0.0, 0.0),
        (-1e300, -1e300),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
    ],
)
def test_finite_is_none_for_nan_and_infinity(value: float, expected: float | None) -> None:
    """`finite` returns a finite value unchanged, and None for NaN and both infinities."""
    assert finite(value) == expected


def test_ratios_are_none_where_they_are_not_finite() -> None:
    """`ratios` turns NaN and both infinities into None and keeps all other values in place."""
    values = [1.5, math.nan, math.inf, -math.inf, 0.0, -2.0]
    assert ratios(values) == [1.5, None, None, None, 0.0, -2.0]
