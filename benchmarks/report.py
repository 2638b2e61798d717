"""Write the rows of `python -m benchmarks --json FILE` into docs/benchmarks.md as one table.

Rows of a later file replace equal rows of an earlier one. Exit code 1 if the page has no place for
the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bars import Bar

BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
HEAD = "| | case | figure | earlier | now | bar | reached |\n|---|---|---|--:|--:|--:|---|"
SIGNS = {">=": "≥", "<=": "≤"}
UNITS = {"times": "", "1/s": ""}
"""Units that the name of the figure states already."""


def page(text: str, reports: Sequence[Mapping[str, Any]]) -> str:
    """The page with the rows of the reports in place of its earlier ones.

    Raises:
        ValueError: The page has no place for the table.
    """
    if not 0 <= text.find(BEGIN) < text.find(END):
        raise ValueError(f"the page needs {BEGIN} and {END}")
    rows = {
        (row["workload"], row["case"], row["figure"]): row
        for report in reports
        for row in report["rows"]
    }
    machine = _machine(reports[-1]["machine"])
    table = "\n".join([HEAD, *map(_line, _sizes_together(rows.values()))])
    before, after = text[: text.find(BEGIN)], text[text.find(END) :]
    return f"{before}{BEGIN}\n{machine}\n\n{table}\n{after}"


def _machine(facts: Mapping[str, Any]) -> str:
    """A sentence about the machine."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return (
        f"Measured on {facts['when'][:10]} on {facts['device']} with {facts['processor']}, "
        f"{facts['threads']} thread(s); {versions}."
    )


def _sizes_together(rows: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Rows that differ in the number of tokens alone, together, in their first one's place."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["workload"], _case(row, ["N"]), row["figure"]), []).append(row)
    return list(groups.values())


def _case(row: Mapping[str, Any], sizes: Sequence[str]) -> str:
    """The case of a row, with other sizes in place of its number of tokens."""
    case: str = row["case"].replace(f"{row['tokens']} tokens", f"{', '.join(sizes)} tokens")
    return case


def _line(rows: Sequence[Mapping[str, Any]]) -> str:
    """The line of rows that differ in the number of tokens alone."""
    first = rows[0]
    bars = [None if row["bar"] is None else Bar(**row["bar"]) for row in rows]
    reached = [
        None if bar is None else bar.reached(row["value"])
        for bar, row in zip(bars, rows, strict=True)
    ]
    unit = UNITS.get(first["unit"], f" {first['unit']}")
    limits = [None if bar is None else bar.limit for bar in bars]
    side = next((SIGNS[bar.side] + " " for bar in bars if bar and bar.limit is not None), "")
    missed = [str(row["tokens"]) for row, yes in zip(rows, reached, strict=True) if yes is False]
    verdict = "yes" if any(reached) and not missed else ""
    if missed:
        verdict = "**no**" if len(missed) == len(rows) else f"**no** at {', '.join(missed)}"
    columns = (
        first["workload"],
        _case(first, [str(row["tokens"]) for row in rows]),
        first["figure"],
        _numbers([None if bar is None else bar.earlier for bar in bars], unit),
        _numbers([row["value"] for row in rows], unit),
        side + _numbers(limits, unit, equal_once=True) if side else "",
        verdict,
    )
    return f"| {' | '.join(columns)} |"


def _numbers(values: Sequence[float | None], unit: str, *, equal_once: bool = False) -> str:
    """Numbers with three digits, and a dash for a missing one; nothing if all are missing."""
    if all(value is None for value in values):
        return ""
    shown = ["–" if value is None else _number(value) for value in values]
    return ", ".join(shown[:1] if equal_once and len(set(shown)) == 1 else shown) + unit


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> int:
    """Write the table into the page."""
    parser = argparse.ArgumentParser("python -m benchmarks.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="rows as JSON")
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    reports = [json.loads(file.read_text()) for file in options.files]
    try:
        options.page.write_text(page(options.page.read_text(), reports))
    except ValueError as error:
        print(f"benchmarks.report: {options.page}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
