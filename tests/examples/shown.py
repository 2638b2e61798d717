"""Compare shown output with printed output, and rewrite it if it differs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

ELISION = "…"
"""A line with this character stands for lines left out."""
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
ROUNDING = 1e-4
"""Smaller numbers are rounding errors. Only their order of magnitude is compared."""
FLOAT64 = 1e-13
"""Rounding errors below this bound are all accepted."""
TOLERANCE = 0.02
"""Relative tolerance of a shown number."""
DRIFT = 0.005
"""Relative change above which a shown number is rewritten; rounding to three digits stays below."""
NAMING = {"layer", "position", "hook_point", "code", "query", "weight", "index"}
"""Keys whose values identify an entry of a list."""


class NotShown(AssertionError):
    """The printed output lacks a shown line."""


def assert_shown(shown: str, actual: Sequence[str]) -> None:
    """Check that the answer has every shown line, in order. Lines with an elision are skipped.

    Raises:
        NotShown: A line is missing.
    """
    rest = iter(actual)
    for wanted in (line for line in shown.splitlines() if ELISION not in line and line.strip()):
        if not any(alike(wanted, line) for line in rest):
            raise NotShown(f"not in the answer: {wanted}")


def alike(shown: str, actual: str, tolerance: float = TOLERANCE) -> bool:
    """Return whether two lines are equal, up to the rounding of numbers that are not integers."""
    shown, actual = squeezed(shown), squeezed(actual)
    if NUMBER.sub("#", shown) != NUMBER.sub("#", actual):
        return False
    numbers = zip(NUMBER.findall(shown), NUMBER.findall(actual), strict=True)
    return all(near(a, b, tolerance) for a, b in numbers)


def squeezed(line: str) -> str:
    """Return a line with repeated spaces and rules reduced to one, without a final comma."""
    return re.sub(r"([ ━─])\1+", r"\1", line.strip()).rstrip(",")


def near(shown: str, actual: str, tolerance: float = TOLERANCE) -> bool:
    """Return whether a number equals the shown one: integers exactly, others within the tolerance.

    Numbers with the same number of digits may also differ by one in the last digit, because
    rounding can change it even if the values are almost equal.
    """
    if not re.search("[.e]", shown + actual):
        return shown == actual
    a, b = float(shown), float(actual)
    # A rounding error may be exactly 0.
    if max(abs(a), abs(b)) < ROUNDING:
        return abs(b) <= max(10 * abs(a), FLOAT64)
    last = 0.0
    if tolerance == TOLERANCE and "e" not in shown + actual and len(shown) == len(actual):
        last = 1.01 * 10.0 ** -len(shown.partition(".")[2])
    return abs(a - b) <= max(tolerance * abs(a), last)


def rewritten(language: str, shown: str, actual: Sequence[str]) -> str:
    """Return the block as it is if all of it still holds, else the block from the printed output.

    A block is never mixed from two answers, because their numbers could contradict each other.

    Args:
        language: `json`, whose elisions are kept, or `text`.
        shown: The block in the document.
        actual: The printed lines.

    Raises:
        NotShown: The answer lacks a shown line, so the block must be corrected by hand.
    """
    lines = shown.splitlines()
    if language == "json":
        return "".join(f"{line}\n" for line in _placed(lines, actual, _place, _rounded))
    if ELISION in shown:
        return "".join(f"{line}\n" for line in _placed(lines, actual, _words, str))
    same = len(lines) == len(actual) and all(
        alike(old, new, DRIFT) for old, new in zip(lines, actual, strict=True)
    )
    return "".join(f"{line.rstrip()}\n" for line in (lines if same else actual))


def _placed(
    shown: Sequence[str],
    actual: Sequence[str],
    place: Callable[[str], object],
    rounded: Callable[[str], str],
) -> list[str]:
    """Return the answer's lines in the places of the shown ones, or the shown ones if all hold."""
    rest = iter(actual)
    lines, same = [], True
    for old in shown:
        if ELISION in old or not old.strip():
            lines.append(old)
            continue
        new = next((line for line in rest if place(line) == place(old)), None)
        if new is None:
            raise NotShown(f"has no place in the answer: {old}")
        lines.append(rounded(new))
        same = same and alike(old, new, DRIFT)
    return list(shown) if same else lines


def _place(line: str) -> tuple[int, str]:
    """Return the place of a line of indented JSON: its depth, key and entry."""
    text = line.strip().rstrip(",")
    depth = len(line) - len(line.lstrip())
    key, colon, _ = text.partition('":')
    if colon:
        return depth, text if key.strip('"') in NAMING else key
    return depth, text if text and text[0] in "{}[]" else "value"


def _words(line: str) -> str:
    """Return a line of text without its numbers and column widths."""
    return NUMBER.sub("#", squeezed(line))


def _rounded(line: str) -> str:
    """Return a line of indented JSON with a non-integer number rounded to three digits."""
    before, value, comma = re.fullmatch(r"(.*?)([^\s,]*)(,?)", line).groups()  # type: ignore[union-attr]
    if not NUMBER.fullmatch(value) or isinstance(json.loads(value), int):
        return line
    number = float(value)
    said = f"{number:.0f}" if 1000 <= abs(number) < 1e6 else f"{number:.3g}"
    return f"{before}{said}{comma}"
