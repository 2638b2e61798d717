"""The tables of adapters in docs/theory.md are what the bundled model gives."""

from __future__ import annotations

from itertools import pairwise

import pytest

from docs.adapter_figures import TABLES, measured
from docs.figures import BLOCK, DOCUMENT, filled
from tests.examples.shown import NUMBER, ROUNDING

TOLERANCE = 0.05
"""Largest change of a figure, absolute below 1 and relative above."""


def shown(name: str) -> str:
    """A table of the document."""
    start, end = BLOCK.format(name, "\0").split("\0")
    return DOCUMENT.read_text(encoding="utf-8").partition(start)[2].partition(end)[0]


def agrees(old: str, new: str) -> bool:
    """Whether two tables have the same words, and numbers that are equal up to rounding."""
    if NUMBER.sub("#", old) != NUMBER.sub("#", new):
        return False
    pairs = zip(NUMBER.findall(old), NUMBER.findall(new), strict=True)
    return all(_near(float(a), float(b)) for a, b in pairs)


def _near(old: float, new: float) -> bool:
    if abs(old) < ROUNDING:
        return abs(new) < ROUNDING
    return abs(new - old) <= TOLERANCE * max(1.0, abs(old))


def test_document_has_a_place_for_each_table() -> None:
    """Each table has its place, in the order of `TABLES`, and its head."""
    document = DOCUMENT.read_text(encoding="utf-8")
    places = [document.index(f"<!-- figures: {name} -->") for name in TABLES]
    assert all(one < other for one, other in pairwise(places))
    assert all(shown(name).startswith(f"| {head[0]} |") for name, (head, _) in TABLES.items())
    assert filled(document, {name: shown(name) for name in TABLES}) == document


def test_other_figures_do_not_agree() -> None:
    """A figure that has moved, or a rounding error that is none any more, is noticed."""
    assert agrees("| a | 0.981 | 3e-13 |", "| a | 0.979 | 8e-12 |")
    assert not agrees("| a | 0.981 |", "| a | 0.87 |")
    assert not agrees("| a | 3e-13 |", "| a | 0.003 |")
    assert not agrees("| a | 1 |", "| b | 1 |")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("name", TABLES)
def test_tables_show_what_is_measured(name: str) -> None:
    """A table is measured again and shows the same figures, up to rounding."""
    assert agrees(shown(name), measured([name])[name])
