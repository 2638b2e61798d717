"""Measure the workloads of docs/benchmarks.md and print a table.

Exit code 1 if a workload failed, 2 for an unknown workload, else 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    """Measure the workloads that the command line selects."""
    options = _options()
    # torch reads these when it is imported.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from benchmarks.bench import Bench
    from benchmarks.run import WORKLOADS, measure

    if unknown := set(options.only) - set(WORKLOADS):
        print(f"benchmarks: no workload {unknown.pop()}: {', '.join(WORKLOADS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    bench = Bench(
        options.model,
        options.cache,
        torch.device(options.device),
        options.seconds,
        options.threads,
        options.peers,
    )
    if failed := measure(bench, WORKLOADS, options.only, options.json):
        print(f"benchmarks: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = parser.add_argument
    option("--only", action="append", default=[], metavar="W1", help="workload; repeatable")
    option("--json", type=Path, metavar="FILE", help="file that receives the rows as JSON")
    option("--model", help="`bundled`, a folder or a hub id instead of the random checkpoint")
    option("--device", default="cpu", help="torch device of the models")
    option(
        "--cache",
        type=Path,
        default=Path("build/benchmarks"),
        help="folder of the random checkpoint and of the peers' environments",
    )
    option("--seconds", type=float, default=20.0, help="seconds for each comparison")
    option(
        "--no-peers", dest="peers", action="store_false", help="skip nnsight and TransformerLens"
    )
    option("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
