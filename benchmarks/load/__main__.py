"""`python -m benchmarks.load`: put load on a service, and account for every request.

Exit code 1 where a request was lost, the service did not end with 0, or, in a soak, memory drifted
or threads or files were left.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

SCENARIOS: Mapping[str, Mapping[str, int]] = {
    "mixed": {"Mixed": 8},
    "bursts": {"Burst": 120},
    "slow": {"Mixed": 4, "Slow": 8},
    "leaving": {"Mixed": 4, "Leaving": 8},
    "all": {"Mixed": 6, "Burst": 40, "Slow": 4, "Leaving": 2},
}
"""How many clients of which kind."""
BARS = {"livez": ("p99", 20.0), "metrics": ("slowest", 100.0)}
"""Of the probes: which figure counts, and its bar in milliseconds. It is no fault where one is not
kept: a machine may be busy with more than the load."""
WARM_UP = 300.0
WINDOW = 180.0
DRIFT = 0.02


def main() -> int:
    """Run what the command line asks for."""
    asked = _arguments()
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    import torch

    from benchmarks.load.environment import locust_python
    from benchmarks.machine import describe

    torch.set_num_threads(asked.threads)
    machine = describe(torch.device("cpu"))
    print(machine, flush=True)
    python = locust_python(asked.cache)
    named = ["all"] if asked.soak else asked.only or [name for name in SCENARIOS if name != "all"]
    seconds = 60.0 * asked.soak if asked.soak else asked.seconds
    reports = [_run(asked, python, name, seconds) for name in named]
    if asked.json is not None:
        told = {"machine": asdict(machine), "runs": reports}
        asked.json.write_text(json.dumps(told, indent=1) + "\n")
    return int(any(report["faults"] for report in reports))


def _run(asked: argparse.Namespace, python: Path, name: str, seconds: float) -> dict[str, object]:
    """One scenario against a service of its own."""
    from benchmarks.load.account import account
    from benchmarks.load.watch import watching
    from benchmarks.process import serving

    with tempfile.TemporaryDirectory(prefix="deltaw-load-") as folder:
        log, records = Path(folder, "log"), Path(folder, "records")
        with serving(log, model=asked.model, threads=asked.threads) as service:
            with watching(service) as seen:
                _locust(python, service.connection.port, SCENARIOS[name], seconds, records)
            before = service.resident
        found = account(records, log)
        ended = service.process.returncode
    faults = list(found.faults)
    if ended != 0:
        faults.append(f"the service ended with {ended}")
    report: dict[str, object] = {
        "scenario": name,
        "seconds": seconds,
        **asdict(found),
        "resident": before,
        "samples": [asdict(sample) for sample in seen.samples],
    }
    print(f"\n{name}, {seconds:g} s: {found.sent} sent, {dict(found.outcomes)}")
    print(f"  refused: {dict(found.refused)}")
    for path, (p50, p95, p99, slowest) in found.milliseconds.items():
        print(f"  {path:<24} ms p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, slowest {slowest:.0f}")
    for probe, (figure, bar) in BARS.items():
        report[f"{probe}_ms"] = taken = _probe(getattr(seen, probe))
        report[f"{probe}_kept"] = kept = taken[figure] <= bar
        print(f"  /{probe} ms {taken}, bar {figure} <= {bar:g}: {'kept' if kept else 'not kept'}")
    if asked.soak:
        start, end = WARM_UP, seen.samples[-1].at
        for figure, unit in (("resident", 1 << 20), ("threads", 1), ("files", 1)):
            first = seen.between(start, start + WINDOW, figure) / unit
            last = seen.between(end - WINDOW, end, figure) / unit
            report[f"{figure}_from_to"] = first, last
            print(f"  {figure} {first:.1f} -> {last:.1f} ({100 * (last / first - 1):+.2f} %)")
            if last / first - 1 >= DRIFT:
                faults.append(f"{figure} grew from {first:.1f} to {last:.1f} after the warm-up")
    report["faults"] = faults
    print("  " + ("; ".join(faults[:10]) or "no request lost, exit code 0"), flush=True)
    return report


def _locust(
    python: Path, port: int, users: Mapping[str, int], seconds: float, records: Path
) -> None:
    """Locust with these users for so long; then whatever is under way is waited for."""
    file = Path(__file__).with_name("locustfile.py")
    command = [str(python), "-m", "locust", "--locustfile", str(file)]
    command += ["--headless", "--only-summary", "--users", str(sum(users.values())), *users]
    for kind, count in users.items():
        told = {"user_class_name": kind, "fixed_count": count}
        command += ["--config-users", json.dumps(told)]
    command += ["--host", f"http://127.0.0.1:{port}", "--run-time", f"{seconds:g}s"]
    command += ["--spawn-rate", "100", "--stop-timeout", "120", "--exit-code-on-error", "0"]
    environment = {**os.environ, "RECORDS": str(records)}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if output.returncode != 0 or not records.is_file():
        raise RuntimeError(f"locust failed: {output.stderr[-2000:]}")


def _probe(taken: Sequence[float]) -> dict[str, float]:
    """How many milliseconds a probe took."""
    import numpy as np

    p50, p99 = np.percentile(taken, [50, 99])
    return {
        "p50": round(1000 * float(p50), 1),
        "p99": round(1000 * float(p99), 1),
        "slowest": round(1000 * max(taken), 1),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.load", description=__doc__)
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="may be repeated")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each scenario; 60")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="all at once, for so long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument("--model", default="bundled", help="`bundled`, a folder or a hub id")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; 1 by default")
    parser.add_argument("--cache", type=Path, default=Path("build/benchmarks"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
