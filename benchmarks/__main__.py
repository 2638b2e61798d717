"""`python -m benchmarks`: measure the workloads and print the table.

What needs torch is imported once `OMP_WAIT_POLICY` and the threads are in the environment.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    """Measure what the command line asks for; exit code 1 where two sides disagree."""
    asked = _arguments()
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from benchmarks.agreement import Disagreement
    from benchmarks.bench import Bench
    from benchmarks.machine import describe
    from benchmarks.table import as_json, heading, line
    from benchmarks.workloads import WORKLOADS

    if unknown := sorted(set(asked.only) - set(WORKLOADS)):
        print(f"benchmarks: {unknown[0]} is none of {', '.join(WORKLOADS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    machine = describe(device)
    bench = Bench(asked.model, asked.cache, device, asked.seconds, asked.threads, asked.peers)
    print(f"{machine}\n\n{heading()}", flush=True)
    rows = []
    with torch.inference_mode():
        for name, measure in WORKLOADS.items():
            if asked.only and name not in asked.only:
                continue
            try:
                for row in measure(bench):
                    rows.append(row)
                    print(line(row), flush=True)
            except Disagreement as error:
                print(f"benchmarks: {name}: {error}", file=sys.stderr)
                return 1
            if asked.json is not None:
                asked.json.write_text(as_json(machine, rows) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="W1", help="one workload; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument(
        "--model",
        help="`bundled`, a folder or a hub id; by default a random GPT-2 of the small one's shape",
    )
    parser.add_argument("--device", default="cpu", help="of the models; `cpu` by default")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("build/benchmarks"),
        help="where checkpoints and the peers' environments are kept; build/benchmarks by default",
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each comparison; about 20")
    parser.add_argument(
        "--no-peers", dest="peers", action="store_false", help="leave nnsight and TransformerLens"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; 1 by default")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
