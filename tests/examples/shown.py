"""Whether what is shown is what was printed, and how documents are corrected where it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

ELISION = "…"
"""Stands, alone on its line, for lines that are left out."""
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
ROUNDING = 1e-4
"""Numbers this small are rounding errors here, and share only their order of magnitude."""
FLOAT64 = 1e-13
"""Below it every rounding error is as good as another."""
TOLERANCE = 0.02
"""Within it, relative, a number is the one shown."""
DRIFT = 0.005
"""Beyond it, relative, a shown number is written anew: more than rounding to three digits takes."""
NAMING = {"layer", "position", "hook_point", "code", "query", "weight", "index"}
"""Keys whose values say which entry of a list this is."""


class NotShown(AssertionError):
    """A shown line has no place in what was printed."""


def assert_shown(shown: str, actual: Sequence[str]) -> None:
    """Every line shown stands in the answer, in this order; elided ones are passed over.

    Raises:
        NotShown: One does not.
    """
    rest = iter(actual)
    for wanted in (line for line in shown.splitlines() if ELISION not in line and line.strip()):
        if not any(alike(wanted, line) for line in rest):
            raise NotShown(f"not in the answer: {wanted}")


def alike(shown: str, actual: str, tolerance: float = TOLERANCE) -> bool:
    """Whether two lines are the same, up to the rounding of numbers that are not whole."""
    shown, actual = squeezed(shown), squeezed(actual)
    if NUMBER.sub("#", shown) != NUMBER.sub("#", actual):
        return False
    numbers = zip(NUMBER.findall(shown), NUMBER.findall(actual), strict=True)
    return all(near(a, b, tolerance) for a, b in numbers)


def squeezed(line: str) -> str:
    """A line whose columns are as narrow as can be, without a comma at its end."""
    return re.sub(r"([ ━─])\1+", r"\1", line.strip()).rstrip(",")


def near(shown: str, actual: str, tolerance: float = TOLERANCE) -> bool:
    """Whether a number is the one shown: whole ones exactly, others to the digits shown.

    Two that are printed with as many digits may, beyond the tolerance, differ by one in the last:
    that is how far rounding can take what is as good as equal.
    """
    if "." not in actual and "e" not in actual:
        return shown == actual
    a, b = float(shown), float(actual)
    if max(abs(a), abs(b)) < ROUNDING:
        return abs(b) <= max(10 * abs(a), FLOAT64)
    last = 0.0
    if tolerance == TOLERANCE and "e" not in shown + actual and len(shown) == len(actual):
        last = 1.01 * 10.0 ** -len(shown.partition(".")[2])
    return abs(a - b) <= max(tolerance * abs(a), last)


def rewritten(language: str, shown: str, actual: Sequence[str]) -> str:
    """What has to be shown now: what is there if all of it is still true, else what was printed.

    A block is one answer's or another's: numbers of two would contradict each other.

    Args:
        language: `json`, of which the lines left out stay left out, or `text`.
        shown: The block as it is.
        actual: What was printed.

    Raises:
        NotShown: A line has no place in the answer, so the block must be corrected by hand.
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
    """The lines of an answer that have the places of the shown ones, if one of those is untrue."""
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
    """Where a line of laid-out JSON stands: how deep, under which key, in which entry."""
    text = line.strip().rstrip(",")
    depth = len(line) - len(line.lstrip())
    key, colon, _ = text.partition('":')
    if colon:
        return depth, text if key.strip('"') in NAMING else key
    return depth, text if text and text[0] in "{}[]" else "value"


def _words(line: str) -> str:
    """A line of text without its numbers, however wide its columns are."""
    return NUMBER.sub("#", squeezed(line))


def _rounded(line: str) -> str:
    """A line of laid-out JSON with a number that is not whole to three digits."""
    before, value, comma = re.fullmatch(r"(.*?)([^\s,]*)(,?)", line).groups()  # type: ignore[union-attr]
    if not NUMBER.fullmatch(value) or isinstance(json.loads(value), int):
        return line
    number = float(value)
    said = f"{number:.0f}" if 1000 <= abs(number) < 1e6 else f"{number:.3g}"
    return f"{before}{said}{comma}"
