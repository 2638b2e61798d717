"""Find the examples in the documents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
OWN_TEST = ("operations.md", "reliability.md", "benchmarks.md")
"""Documents without shown output, or that another test checks."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
RUN = ("sh", "python")
SHOWN = ("json", "text")


@dataclass(frozen=True)
class Fence:
    """A fenced block.

    Args:
        language: The word after the opening fence.
        text: The text between the fences.
        start: Index of the text's first character in the document.
    """

    language: str
    text: str
    start: int


@dataclass(frozen=True)
class Example:
    """A block that a test runs, and the block after it with its output.

    Args:
        name: Its document and its first line.
        document: Path of its document.
        script: Shell or Python code.
        shown: The output: JSON with lines left out, or text.
    """

    name: str
    document: Path
    script: Fence
    shown: Fence


def documents() -> list[Path]:
    """Return README.md and the pages of docs/ whose examples the tests run."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    return [ROOT / "README.md", *(page for page in pages if page.name not in OWN_TEST)]


def fences(text: str) -> list[Fence]:
    """Return every fenced block of a document, in order."""
    return [Fence(each[1], each[2], each.start(2)) for each in FENCE.finditer(text)]


def examples(document: Path) -> list[Example]:
    """Return every example of a document, in order."""
    text = document.read_text()
    return [
        Example(f"{document.name}:{text.count(chr(10), 0, script.start)}", document, script, shown)
        for script, shown in pairwise(fences(text))
        if script.language in RUN and shown.language in SHOWN
    ]


def not_run(document: Path) -> list[str]:
    """Return the lines of a document's scripts that have no shown output, without comments."""
    run = {each.script.start for each in examples(document)}
    scripts = [
        fence
        for fence in fences(document.read_text())
        if fence.language in RUN and fence.start not in run
    ]
    lines = [re.sub(r"\s+# .*", "", line) for each in scripts for line in each.text.splitlines()]
    return [line for line in lines if line]
