"""Results: rows of the table, as text and as JSON, and the machine that they were measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

import service
from benchmarks.bars import Bar
from benchmarks.bench import Bench
from benchmarks.timing import MIN_ROUNDS, Sides, alternate, milliseconds, ratio

COLUMNS = "{:<8}{:<42}{:<42}{:>9}{:>10} {:<6}{:>9} {:<4}{}"
PACKAGES = ("torch", "transformers", "numpy", "fastapi", "uvicorn", "orjson")


@dataclass(frozen=True)
class Row:
    """One figure.

    Args:
        workload: Name of the workload, as in docs/benchmarks.md.
        case: Size and model.
        figure: Name of the measured quantity; a ratio is `numerator / denominator`.
        value: The figure.
        unit: Unit of the figure, of its bar and of its earlier value.
        tokens: Number of tokens that the bar depends on, if it does.
        rounds: Number of measurements behind each median.
        medians: Medians behind the figure, by name and unit.
    """

    workload: str
    case: str
    figure: str
    value: float
    unit: str
    tokens: int | None = None
    rounds: int = 1
    medians: Mapping[str, float] = field(default_factory=dict)


def compare(
    bench: Bench,
    workload: str,
    case: str,
    tokens: int,
    sides: Sides,
    ratios: Iterable[tuple[str, str]],
    rounds: int = MIN_ROUNDS,
    share: float = 1.0,
) -> Iterator[Row]:
    """Time the sides for a share of the measuring time; one row for each ratio of two sides."""
    times = alternate(sides, bench.device, share * bench.seconds, rounds)
    for above, below in ratios:
        medians = {f"{side} ms": milliseconds(times)[side] for side in (above, below)}
        medians["ratio of processor times"] = ratio(times, above, below, "processor")
        name, value = f"{above} / {below}", ratio(times, above, below, "wall")
        yield Row(workload, case, name, value, "times", tokens, len(times[above]), medians)


def heading() -> str:
    """Heading of the table."""
    names = ("", "case", "figure", "earlier", "measured", "", "bar", "", "medians")
    return f"{COLUMNS.format(*names)}\n{'-' * 160}"


def table_line(row: Row, bar: Bar | None) -> str:
    """A row as a line of the table, with its earlier figure and its bar."""
    medians = ", ".join(f"{name} {value:.4g}" for name, value in row.medians.items())
    earlier = limit = reached = ""
    if bar is not None:
        earlier = "" if bar.earlier is None else f"{bar.earlier:g}"
        limit = "" if bar.limit is None else f"{bar.side} {bar.limit:g}"
        reached = {None: "", True: "yes", False: "NO"}[bar.reached(row.value)]
    value = f"{row.value:.3g}" if abs(row.value) < 100 else f"{row.value:.0f}"
    columns = (row.workload, row.case, row.figure, earlier, value, row.unit, limit, reached)
    return COLUMNS.format(*columns, f"{medians} ({row.rounds} rounds)")


def as_json(machine: Mapping[str, object], rows: Iterable[tuple[Row, Bar | None]]) -> str:
    """The machine and all rows as JSON."""
    written = [asdict(row) | {"bar": None if bar is None else asdict(bar)} for row, bar in rows]
    return json.dumps({"machine": machine, "rows": written}, indent=2, ensure_ascii=False)


def describe_machine(device: torch.device) -> dict[str, object]:
    """Processor, load, threads and versions, by name.

    Two machines may share a processor's name, so the widest vector instructions stand beside it.
    """
    facts = dict[str, str]()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    processor = facts.get("model name", platform.machine())
    vectors = torch.backends.cpu.get_cpu_capability()
    versions = {name: version(name) for name in PACKAGES}
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": f"{processor} ({vectors}), {len(os.sched_getaffinity(0))} cores",
        "load over the last minute": os.getloadavg()[0],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "versions": {
            "deltaw": service.__version__,
            "python": platform.python_version(),
            **versions,
        },
    }
