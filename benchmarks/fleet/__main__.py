"""Simulate a fleet with measured service times, and print the tables of docs/scaling.md.

Without options, this command uses the service times of docs/fleet.json and starts no service.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import Bench
from benchmarks.fleet import measure, page, scenarios
from benchmarks.fleet.replica import Times
from benchmarks.results import describe_machine

FRACTION = 0.15
"""Maximum error of a simulated share of cached rows or rate, relative to the measured one."""


def main() -> int:
    """Measure, compare and simulate as the command line says.

    Returns:
        1 if a simulated figure differs too much from the measured one, else 0.
    """
    options = _options()
    results = page.stored() if page.RESULTS.exists() else {}
    if options.measure:
        results |= _measured(options.cache)
    times = page.service_times(results)
    if options.compare is not None:
        results["compared"] = list(compared(options.cache, options.compare))
        results["compared_on"] = machine("python -m benchmarks.fleet --compare")
    results["compared"] = [one | simulated(times, one) for one in results["compared"]]
    results["sizes"] = list(scenarios.sizes(times))
    results["rules"] = list(scenarios.rules(times))
    results["events"] = list(scenarios.events(times))
    for name, text in page.tables(results).items():
        print(f"{name}\n\n{text}\n")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if options.write:
        page.RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        document = page.DOCUMENT.read_text(encoding="utf-8")
        page.DOCUMENT.write_text(page.written(document, results), encoding="utf-8")
    wrong = [one for one in results["compared"] if not agrees(one)]
    for one in wrong:
        print(f"fleet: the simulation does not reproduce {one}", file=sys.stderr)
    return int(bool(wrong))


def agrees(row: dict[str, Any], names: Sequence[str] = ("known", "rate")) -> bool:
    """Whether the simulation reproduces a measured share of cached rows and a measured rate."""
    return all(abs(row[f"{name}_simulated"] - row[name]) <= FRACTION * row[name] for name in names)


def machine(command: str) -> str:
    """Sentence that names this machine and the command."""
    facts = describe_machine(torch.device("cpu"))
    load = facts["load over the last minute"]
    return (
        f"Measured on {str(facts['when'])[:10]} on {facts['processor']}, load {load:.1f} at the "
        f"end, by `{command}`."
    )


def compared(cache: Path, url: str) -> Iterator[dict[str, Any]]:
    """Measure two real replicas.

    Args:
        cache: Folder of the checkpoint.
        url: URL of a proxy in front of two replicas. If it is empty, each row starts two replicas,
            and a ring or a random number chooses between them.
    """
    size = scenarios.context_bytes(scenarios.LAYERS, scenarios.WIDTH, scenarios.TOKENS)
    room = scenarios.COMPARED_CONTEXTS * size
    for routing in ("affinity",) if url else ("affinity", "random"):
        for chosen in scenarios.COMPARED_SETS:
            with ExitStack() as stack:
                services = (measure.served(checkpoint(cache), room) for _ in range(2))
                urls = [url] if url else [stack.enter_context(one) for one in services]
                layers, affinity = [scenarios.LAYERS - 1], routing == "affinity"
                hits = measure.measure_hits(urls, layers, chosen, affinity)
            yield {"routing": routing, "set": chosen, "known": hits.known, "rate": hits.rate}


def simulated(times: Times, row: dict[str, Any]) -> dict[str, float]:
    """Simulate the measurement of a row of the comparison."""
    positions = measure.context_positions(row["set"])
    room, affinity = scenarios.COMPARED_CONTEXTS, row["routing"] == "affinity"
    known, rate = scenarios.two_replicas(times, affinity, room, positions, measure.QUESTIONS)
    return {"known_simulated": known * measure.KNOWN_ROWS, "rate_simulated": rate}


def checkpoint(cache: Path) -> str:
    """Checkpoint with the shape of GPT-2 small, which is made once."""
    return Bench(None, cache, torch.device("cpu"), 0, 1).checkpoint


def _measured(cache: Path) -> dict[str, Any]:
    times, answer = measure.service_times(checkpoint(cache), scenarios.LAYERS)
    on = machine("python -m benchmarks.fleet --measure")
    return {"times": asdict(times), "answer": answer, "measured_on": on}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.fleet", description=__doc__)
    option = parser.add_argument
    option("--measure", action="store_true", help="measure the service times of a real service")
    option(
        "--compare",
        nargs="?",
        const="",
        metavar="URL",
        help="compare with two real replicas, behind a proxy at URL or started here",
    )
    option(
        "--write",
        action="store_true",
        help="write the results to docs/fleet.json and docs/scaling.md",
    )
    option("--json", type=Path, metavar="FILE", help="file that receives the results")
    option(
        "--cache",
        type=Path,
        default=Path("build/benchmarks"),
        help="folder of the checkpoint (default build/benchmarks)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
