"""The table: a row for each figure, with its bar beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from benchmarks.machine import Machine
from benchmarks.timing import Times

COLUMNS = "{:<4}{:<42}{:<38}{:>10} {:<6}{:>9} {:<4}{}"


@dataclass(frozen=True)
class Bar:
    """What is to be reached.

    Args:
        side: Whether the figure must be at least or at most the value.
        value: In the figure's unit.
    """

    side: Literal[">=", "<="]
    value: float

    def reached(self, figure: float) -> bool:
        """Whether a figure is on the right side."""
        return figure >= self.value if self.side == ">=" else figure <= self.value


@dataclass(frozen=True)
class Row:
    """One figure.

    Args:
        workload: As in performance.md.
        case: Of which size, on which model.
        figure: What is given: what over what.
        value: The figure.
        unit: Of the figure and of its bar.
        bar: What is to be reached, where something is.
        rounds: How many measurements the medians are over.
        beside: The medians that it was formed from, by name and unit.
    """

    workload: str
    case: str
    figure: str
    value: float
    unit: str
    bar: Bar | None = None
    rounds: int = 1
    beside: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_times(
        cls,
        workload: str,
        case: str,
        times: Times,
        above: str,
        below: str,
        unit: str,
        bar: Bar | None,
    ) -> Row:
        """The row of one side's time over another's."""
        beside = {f"{side} ms": value for side, value in times.milliseconds.items()}
        return cls(
            workload,
            case,
            f"{above} / {below}",
            times.ratio(above, below),
            unit,
            bar,
            times.rounds,
            {"in processor time": times.processor_ratio(above, below), **beside},
        )


def heading() -> str:
    """The table's first lines."""
    line = COLUMNS.format("", "case", "figure", "measured", "", "bar", "", "medians")
    return f"{line.rstrip()}\n{'-' * 150}"


def line(row: Row) -> str:
    """A row as a person reads it."""
    medians = ", ".join(f"{name} {value:.4g}" for name, value in row.beside.items())
    bar, reached = "", ""
    if row.bar is not None:
        bar = f"{row.bar.side} {row.bar.value:g}"
        reached = "yes" if row.bar.reached(row.value) else "NO"
    return COLUMNS.format(
        row.workload,
        row.case,
        row.figure,
        f"{row.value:.3g}" if abs(row.value) < 100 else f"{row.value:.0f}",
        row.unit,
        bar,
        reached,
        f"{medians} ({row.rounds} rounds)",
    )


def as_json(machine: Machine, rows: Sequence[Row]) -> str:
    """The table for a program."""
    told = [
        {**asdict(row), "reached": None if row.bar is None else row.bar.reached(row.value)}
        for row in rows
    ]
    return json.dumps({"machine": asdict(machine), "rows": told}, indent=2, ensure_ascii=False)
