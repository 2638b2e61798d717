"""The table of workloads, and the loop that measures them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import (
    engine_workloads,
    generation_workloads,
    long_workloads,
    memory,
    probes,
    service_workloads,
)
from benchmarks.bars import Bar, find_bar
from benchmarks.bench import Bench
from benchmarks.results import Row, as_json, describe_machine, heading, table_line

Part = Callable[[Bench], Iterator[Row]]
WORKLOADS: Mapping[str, Sequence[Part]] = {
    "W1": (engine_workloads.one_layer,),
    "SmolLM2": (engine_workloads.one_layer_of_smollm2,),
    "W2": (engine_workloads.all_layers,),
    "W3": tuple(
        partial(engine_workloads.cached_context, tokens=tokens) for tokens in (128, 512, 1000)
    ),
    "W4": (engine_workloads.token_trajectory,),
    "W5": (service_workloads.batching,),
    "W6": (service_workloads.overhead, service_workloads.serialization),
    "W7": tuple(
        partial(probes.probe_under_load, path=path, interval=interval, figure=figure)
        for path, interval, figure in probes.PROBES
    ),
    "W8": (memory.starts, memory.peak_under_load),
    "W9": tuple(partial(service_workloads.throughput, tokens=tokens) for tokens in (22, 128)),
    "W10": (generation_workloads.generation,),
    "W12": (
        *(partial(long_workloads.trajectory, name=name) for name in long_workloads.SETTINGS),
        long_workloads.growth,
        *(partial(long_workloads.many_runs, name=name) for name in long_workloads.QUESTIONS),
    ),
    "client": (service_workloads.client_overhead,),
}
"""The parts of each workload. A part that fails costs no row of another."""


def measure(
    bench: Bench, workloads: Mapping[str, Sequence[Part]], only: Collection[str], json: Path | None
) -> list[str]:
    """Print each row as soon as it is measured, and write all rows after each workload.

    Args:
        bench: The set-up.
        workloads: Workloads by name.
        only: Names of the workloads to measure; none means all.
        json: File to write the rows to.

    Returns:
        Names of the workloads with a part that failed. All rows that were measured are kept.
    """
    machine = describe_machine(bench.device)
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n")
    print(f"\n{heading()}", flush=True)
    rows: list[tuple[Row, Bar | None]] = []
    failed: list[str] = []
    chosen = {name: parts for name, parts in workloads.items() if not only or name in only}
    for name, part in ((name, part) for name, parts in chosen.items() for part in parts):
        try:
            with torch.inference_mode():
                for row in part(bench):
                    # Bars hold for the default checkpoint only.
                    found = find_bar(bench.device.type, row.workload, row.figure, row.tokens)
                    rows.append((row, found if bench.chosen is None else None))
                    print(table_line(*rows[-1]), flush=True)
        except Exception:
            failed += [name] if name not in failed else []
            traceback.print_exc()
        if json is not None:
            json.write_text(as_json(machine, rows) + "\n")
    return failed
