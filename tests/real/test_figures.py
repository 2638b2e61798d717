"""The command behind the figures of docs/theory.md gives them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from docs.figures import measure, stored

pytestmark = pytest.mark.slow
CLOSE = 0.02
"""Relative difference between two machines: a unit of the second digit at most."""
AMPLIFIED = 5.0
"""Factor between the noise of two machines. The noise is rounding, which processors do not share,
and rows about to become attention sinks amplify it."""


def leaves(value: Any, path: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], Any]]:
    """Every number, text and truth value within a result, with its path."""
    if isinstance(value, Mapping | list):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            yield from leaves(part, (*path, key))
    else:
        yield path, value


def test_measurements_of_smollm2_equal_the_stored_ones(smollm2: Path) -> None:
    """Measured again, every figure of SmolLM2 agrees to two digits, and its noise in size."""
    found, expected = dict(leaves(measure("smollm2"))), dict(leaves(stored()["smollm2"]))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        if path[0] == "noise":
            assert value / AMPLIFIED < found[path] < value * AMPLIFIED, path
        elif isinstance(value, float):
            assert found[path] == pytest.approx(value, rel=CLOSE), path
        else:
            assert found[path] == value, path
