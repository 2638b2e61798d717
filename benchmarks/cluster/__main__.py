"""Run fleets on this machine, cause faults under load, and print how many requests were lost.

Route 1 is HAProxy with two processes. Route 2 is Ray Serve with two replicas on one node, or on two
simulated nodes. The exit code is 1 if requests were lost or refused in a scenario that allows none,
else 0. Other figures that miss their bar do not change the exit code, because other processes may
keep the machine busy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any


def main() -> int:
    """Run the scenarios that the command line selects."""
    # torch reads these when it is imported.
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    import torch

    from benchmarks.cluster.figures import Figure
    from benchmarks.cluster.scenarios import SCENARIOS
    from benchmarks.results import describe_machine

    options = _options(list(SCENARIOS))
    machine = describe_machine(torch.device("cpu"))
    machine["command"] = " ".join(["python -m benchmarks.cluster", *sys.argv[1:]])
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n", flush=True)
    names = options.only or list(SCENARIOS)
    written, losses = dict[str, Any](), 0
    for start, group in groupby(names, key=lambda name: SCENARIOS[name].start):
        with start() as running:
            for name in group:
                print(f"\n{name}: {SCENARIOS[name].measure.__doc__}", flush=True)
                figures = list[Figure]()
                for figure in SCENARIOS[name].measure(running):
                    print(figure, flush=True)
                    figures.append(figure)
                written[name] = [asdict(figure) for figure in figures]
                losses += sum(figure.loss for figure in figures)
    if options.json is not None:
        text = json.dumps({"machine": machine, "scenarios": written}, indent=1)
        options.json.write_text(text + "\n")
    return int(losses > 0)


def _options(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.cluster", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=names, help="scenario to run; repeatable"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
