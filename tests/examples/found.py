"""Where the examples stand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
OWN_TEST = ("operations.md", "reliability.md", "benchmarks.md")
"""Documents of which another test holds what they say, or that print no answers."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
RUN = ("sh", "python")
SHOWN = ("json", "text")


@dataclass(frozen=True)
class Fence:
    """A fenced block.

    Args:
        language: The word behind the opening fence.
        text: What stands between the fences.
        start: Where the text begins in its document, in characters.
    """

    language: str
    text: str
    start: int


@dataclass(frozen=True)
class Example:
    """A block that is run, and the one behind it that shows what it prints.

    Args:
        name: Its document and the line on which it begins.
        document: The file in which it stands.
        script: What is run, by a shell or by Python.
        shown: What it prints: JSON with lines left out, or text.
    """

    name: str
    document: Path
    script: Fence
    shown: Fence


def documents() -> list[Path]:
    """README.md and the pages of docs/ whose examples are run."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    return [ROOT / "README.md", *(page for page in pages if page.name not in OWN_TEST)]


def fences(text: str) -> list[Fence]:
    """Every fenced block of a document, in order."""
    return [Fence(each[1], each[2], each.start(2)) for each in FENCE.finditer(text)]


def examples(document: Path) -> list[Example]:
    """Every example of a document, in order."""
    text = document.read_text()
    return [
        Example(f"{document.name}:{text.count(chr(10), 0, script.start)}", document, script, shown)
        for script, shown in pairwise(fences(text))
        if script.language in RUN and shown.language in SHOWN
    ]


def not_run(document: Path) -> list[str]:
    """The lines of a document's scripts behind which nothing is shown, comments left out."""
    run = {each.script.start for each in examples(document)}
    scripts = [
        fence
        for fence in fences(document.read_text())
        if fence.language in RUN and fence.start not in run
    ]
    lines = [re.sub(r"\s+# .*", "", line) for each in scripts for line in each.text.splitlines()]
    return [line for line in lines if line]
