"""Put load on a service and account for every request.

Exit code 1 if a request was lost, if the service did not end with 0 or, in a soak, if memory,
threads or open files grew; else 0. A probe that misses its bar is printed and is no failure,
because other processes may have kept the machine busy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

SCENARIOS: Mapping[str, Mapping[str, int]] = {
    "mixed": {"Mixed": 8},
    "bursts": {"Burst": 120},
    "slow": {"Mixed": 4, "Slow": 8},
    "leaving": {"Mixed": 4, "Leaving": 8, "LeavingStreams": 4},
    "lines": {"Mixed": 4, "Lines": 2, "SlowLines": 2, "LeavingLines": 2},
    "all": {"Mixed": 6, "Burst": 40, "Slow": 4, "Leaving": 2, "Lines": 1, "LeavingLines": 1},
}
"""Number of clients by kind."""
INTERVALS = {"/livez": 0.1, "/metrics": 1.0}
BARS = {"/livez": ("p99", 20.0), "/metrics": ("slowest", 100.0)}
"""Figure of each probe that has a bar, and the bar in milliseconds."""
WARM_UP = 300.0
WINDOW = 180.0
GROWTH = 0.02
"""A soak compares the medians of a window after the warm-up and of the last one, in seconds; the
growth allowed is relative to the first."""


def main() -> int:
    """Run the scenarios that the command line selects."""
    options = _options()
    # torch reads these when it is imported.
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    import torch

    from benchmarks.results import describe_machine

    torch.set_num_threads(options.threads)
    machine = describe_machine(torch.device("cpu"))
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n", flush=True)
    names = options.only or [name for name in SCENARIOS if name != "all"]
    seconds = options.seconds
    if options.soak:
        names, seconds = ["all"], 60.0 * options.soak
    runs = [_run(options, name, seconds) for name in names]
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine, "runs": runs}, indent=1) + "\n")
    return int(any(run["faults"] for run in runs))


def _run(options: argparse.Namespace, name: str, seconds: float) -> dict[str, Any]:
    """Run one scenario against a service of its own; print and return its report."""
    from benchmarks.load.account import account
    from benchmarks.load.clients import run_clients
    from benchmarks.probes import percentiles, probing
    from benchmarks.server import Server, parse_metrics, running_server

    samples: list[dict[str, float]] = []

    def observe(server: Server, path: str, body: bytes) -> None:
        if path == "/metrics":
            metrics, proc = parse_metrics(body), Path(f"/proc/{server.process.pid}")
            sample = {
                "second": len(samples) * INTERVALS[path],
                "resident MiB": server.resident / (1 << 20),
                "threads": len(list((proc / "task").iterdir())),
                "open files": len(list((proc / "fd").iterdir())),
            }
            names = ("deltaw_queue_depth", "deltaw_prefix_cache_bytes")
            samples.append(sample | {name: metrics[name] for name in names})

    with tempfile.TemporaryDirectory(prefix="deltaw-load-") as folder:
        log, records = Path(folder, "log"), Path(folder, "records")
        with (
            running_server(log, model=options.model, threads=options.threads) as server,
            probing(server, INTERVALS, observe) as probes,
        ):
            run_clients(server.port, SCENARIOS[name], seconds, records)
        found = account(records, log)
    faults = list(found.faults)
    if server.process.returncode != 0:
        faults.append(f"the service ended with {server.process.returncode}")
    times = {path: percentiles(taken) for path, taken in (*found.seconds.items(), *probes.items())}
    print(f"\n{name}, {seconds:g} s: {found.sent} sent, {found.outcomes}")
    print(f"  refused: {found.refused}")
    for path, values in times.items():
        told = ", ".join(f"{figure} {value:.1f}" for figure, value in values.items())
        if path in BARS:
            figure, bar = BARS[path]
            told += f"; bar: {figure} <= {bar:g}, {'yes' if values[figure] <= bar else 'NO'}"
        print(f"  {path:<24} ms {told}")
    if options.soak:
        faults += _growth(samples)
    print("  " + ("; ".join(faults[:10]) or "no request lost, exit code 0"), flush=True)
    found = replace(found, faults=tuple(faults), seconds={})
    run = {"scenario": name, "seconds": seconds, "milliseconds": times, "samples": samples}
    return asdict(found) | run


def _growth(samples: Sequence[Mapping[str, float]]) -> list[str]:
    """Print what a soak's memory, threads and files did; a sentence for each that grew."""
    faults, end = [], samples[-1]["second"]
    for name in ("resident MiB", "threads", "open files"):
        first, last = (
            median(one[name] for one in samples if start <= one["second"] <= start + WINDOW)
            for start in (min(WARM_UP, end), max(0.0, end - WINDOW))
        )
        print(f"  {name} {first:.1f} -> {last:.1f} ({100 * (last / first - 1):+.2f} %)")
        if last / first - 1 >= GROWTH:
            faults.append(f"{name} grew from {first:.1f} to {last:.1f} after the warm-up")
    return faults


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.load",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = parser.add_argument
    option("--only", action="append", choices=SCENARIOS, help="scenario; repeatable")
    option("--seconds", type=float, default=60.0, help="seconds of each scenario")
    option("--soak", type=float, metavar="MINUTES", help="run all clients at once for so long")
    option("--json", type=Path, metavar="FILE", help="file that receives the reports as JSON")
    option("--model", default="bundled", help="`bundled`, a folder or a hub id")
    option("--threads", type=int, default=1, help="CPU threads of the service")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
