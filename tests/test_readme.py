"""The README is true: each of its examples is run as printed, and its answer is the one shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.service_process import Served

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SERVED_AT = "http://127.0.0.1:8000"
ELISION = "…"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
ROUNDING = 1e-4
"""Numbers this small are rounding errors here, and share only their order of magnitude."""
FLOAT64 = 1e-13
"""Below it every rounding error is as good as another."""


class Fence(NamedTuple):
    """A fenced block of the README."""

    language: str
    text: str


FENCES = [Fence(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)]
CURLS = [(a.text, b.text) for a, b in pairwise(FENCES) if a.text.startswith("curl")]
SCRIPTS = [(a.text, b.text) for a, b in pairwise(FENCES) if a.language == "python"]


def test_there_are_examples() -> None:
    """The README has at least five requests and a script, each with its answer."""
    assert len(CURLS) >= 5
    assert len(SCRIPTS) >= 1
    assert all(ELISION in shown or json.loads(shown) for _, shown in CURLS)


@pytest.mark.parametrize(("command", "shown"), CURLS)
def test_curl(bundled_service: Served, command: str, shown: str) -> None:
    """A curl of the README, run by a shell as printed, gives every line of the answer shown."""
    answer = run(["bash", "-euc", command], bundled_service)
    lines = json.dumps(json.loads(answer), indent=2, ensure_ascii=False).splitlines()
    assert_shown(shown, [line.strip().rstrip(",") for line in lines])


@pytest.mark.parametrize(("script", "shown"), SCRIPTS)
def test_script(bundled_service: Served, script: str, shown: str) -> None:
    """A script of the README, run by Python as printed, prints what is shown."""
    printed = run([sys.executable, "-c", script], bundled_service)
    assert_shown(shown, [line.strip() for line in printed.splitlines()])


def run(command: list[str], service: Served) -> str:
    """What a command prints, with the service's address in the place of the README's."""
    here = [part.replace(SERVED_AT, service.url) for part in command]
    return subprocess.run(here, check=True, capture_output=True, text=True, timeout=60).stdout


def assert_shown(shown: str, actual: list[str]) -> None:
    """Every line shown stands in the answer, in this order; elided ones are passed over."""
    rest = iter(actual)
    for line in shown.splitlines():
        wanted = line.strip().rstrip(",")
        if wanted and ELISION not in wanted:
            assert any(alike(wanted, line) for line in rest), f"not in the answer: {wanted}"


def alike(shown: str, actual: str) -> bool:
    """Whether two lines are the same, up to the rounding of numbers that are not whole."""
    if NUMBER.sub("#", shown) != NUMBER.sub("#", actual):
        return False
    numbers = zip(NUMBER.findall(shown), NUMBER.findall(actual), strict=True)
    return all(near(a, b) for a, b in numbers)


def near(shown: str, actual: str) -> bool:
    """Whether a number is the one shown: whole ones exactly, others to the digits shown."""
    if "." not in actual and "e" not in actual:
        return shown == actual
    a, b = float(shown), float(actual)
    if max(abs(a), abs(b)) < ROUNDING:
        return abs(b) <= max(10 * abs(a), FLOAT64)
    return abs(a - b) <= 0.02 * abs(a)
