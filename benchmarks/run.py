"""The table of workloads, and the loop that measures them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch

from benchmarks import engine_workloads, memory, probes, service_workloads
from benchmarks.bars import Bar, find_bar
from benchmarks.bench import Bench
from benchmarks.results import Row, as_json, describe_machine, heading, table_line

Workload = Callable[[Bench], Iterator[Row]]
WORKLOADS: Mapping[str, Workload] = {
    "W1": engine_workloads.one_layer,
    "SmolLM2": engine_workloads.one_layer_of_smollm2,
    "W2": engine_workloads.all_layers,
    "W3": engine_workloads.cached_context,
    "W4": engine_workloads.token_trajectory,
    "W5": service_workloads.batching,
    "W6": service_workloads.overhead,
    "W7": probes.probes_under_load,
    "W8": memory.start_and_memory,
    "W9": service_workloads.throughput,
    "client": service_workloads.client_overhead,
}


def measure(
    bench: Bench, workloads: Mapping[str, Workload], only: Collection[str], json: Path | None
) -> list[str]:
    """Print each row as soon as it is measured, and write all rows after each workload.

    Args:
        bench: The set-up.
        workloads: Workloads by name.
        only: Names of the workloads to measure; none means all.
        json: File to write the rows to.

    Returns:
        Names of the workloads that failed. A failed workload keeps the rows that it has yielded.
    """
    machine = describe_machine(bench.device)
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n")
    print(f"\n{heading()}", flush=True)
    rows: list[tuple[Row, Bar | None]] = []
    failed = []
    for name, workload in workloads.items():
        if only and name not in only:
            continue
        try:
            with torch.inference_mode():
                for row in workload(bench):
                    # Bars hold for the default checkpoint only.
                    found = find_bar(bench.device.type, row.workload, row.figure, row.tokens)
                    rows.append((row, found if bench.chosen is None else None))
                    print(table_line(*rows[-1]), flush=True)
        except Exception:
            failed.append(name)
            traceback.print_exc()
        if json is not None:
            json.write_text(as_json(machine, rows) + "\n")
    return failed
