"""Tables of docs/scaling.md, from the results in docs/fleet.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fleet import capacity, scenarios
from benchmarks.fleet.replica import Times
from docs.figures import filled, table

DOCUMENT, RESULTS = Path("docs/scaling.md"), Path("docs/fleet.json")
EXAMPLE_RATE = 100.0
BILLION = 1e9
Results = Mapping[str, Any]


def stored() -> dict[str, Any]:
    """The results in docs/fleet.json."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def service_times(results: Results) -> Times:
    """The stored service times."""
    return Times(**results["times"])


def written(document: str, results: Results) -> str:
    """The document with its tables filled from the results."""
    return filled(document, tables(results))


def tables(results: Results) -> dict[str, str]:
    """Each table by its name in the document."""
    return {name: made(results) for name, made in TABLES.items()}


def times_table(results: Results) -> str:
    """Service times of one replica."""
    times, answer = service_times(results), results["answer"]
    rows: list[Sequence[object]] = [
        ["a question whose context is not cached (`cold`)", _ms(times.cold)],
        ["a question whose context is cached (`known`)", _ms(times.known)],
        ["each further known question in the same forward pass", _ms(times.joined)],
        ["a request outside the compute thread", _ms(times.outside)],
        ["an answer, one layer", f"{answer['one_layer'] / 1000:.1f} kB"],
        ["an answer, 12 layers", f"{answer['all_layers'] / 1000:.0f} kB"],
    ]
    return _with_machine(results["measured_on"], table(["one replica", "measured"], rows))


def compared_table(results: Results) -> str:
    """Two real replicas compared with two simulated ones."""
    rows = [
        [
            one["routing"],
            f"set {one['set']}",
            _share(one["known"]),
            _share(one["known_simulated"]),
            f"{one['rate']:.1f}",
            f"{one['rate_simulated']:.1f}",
        ]
        for one in results["compared"]
    ]
    head = ["routing", "contexts", "rows known", "simulated", "requests/s", "simulated"]
    return _with_machine(results["compared_on"], table(head, rows))


def sizes_table(results: Results) -> str:
    """Fleets of several sizes, with affinity and with random routing."""
    rows = []
    for count in dict.fromkeys(one["replicas"] for one in results["sizes"]):
        pair = {one["routing"]: one for one in results["sizes"] if one["replicas"] == count}
        near, far = pair["affinity"], pair["random"]
        rows.append(
            [
                f"{count:.0f}",
                f"{_share(near['known'])}, {_share(far['known'])}",
                f"{near['rate']:,.0f}, {far['rate']:,.0f}",
                f"{near['rate'] / far['rate']:.1f}",
                f"{_ms(near['median'])}, {_ms(far['median'])}",
                f"{near['p99']:.1f} s, {far['p99']:.1f} s",
                f"{_percent(near['refused'])}, {_percent(far['refused'])}",
            ]
        )
    head = ["replicas", "known", "requests/s", "ratio", "median", "p99", "refused"]
    return table(head, rows)


def rules_table(results: Results) -> str:
    """Rules of routing."""
    rows = [
        [
            one["rule"],
            f"{one['rate']:.0f}",
            _share(one["known"]),
            _ms(one["median"]),
            f"{one['p99']:.1f} s",
            _percent(one["refused"]),
        ]
        for one in results["rules"]
    ]
    return table(["rule", "requests/s", "known", "median", "p99", "refused"], rows)


def events_table(results: Results) -> str:
    """Effects of events on a fleet of cells."""
    rows = [
        [
            one["event"],
            f"{_share(one['known_before'])} → {_share(one['known'])}",
            f"{100 * one['answered']:.0f} %",
            f"{one['p99_before']:.1f} → {one['p99']:.1f} s",
            f"{one['refused']:.0f} s",
            f"{one['recovered']:.0f} s",
        ]
        for one in results["events"]
    ]
    head = ["event", "known", "answered", "p99", "refused", "recovered after"]
    return table(head, rows)


def capacity_rows(results: Results) -> list[tuple[str, float, float, float, float]]:
    """Rows: routing, cached share, seconds of a request, cores for the example and at the peak."""
    times = service_times(results)
    largest = max(one["replicas"] for one in results["sizes"])
    last = {one["routing"]: one for one in results["sizes"] if one["replicas"] == largest}
    shares = {
        "no cached context": 0.0,
        f"random, {largest:.0f} replicas": last["random"]["known"],
        f"affinity, {largest:.0f} replicas": last["affinity"]["known"],
    }
    peak = capacity.daily(BILLION).peak
    return [
        (
            name,
            known,
            capacity.mean_seconds(times, known),
            capacity.cores(EXAMPLE_RATE, times, known),
            capacity.cores(peak, times, known),
        )
        for name, known in shares.items()
    ]


def capacity_table(results: Results) -> str:
    """Cores by routing, for the example and for a billion requests a day."""
    rows = [
        [
            name,
            _share(known),
            _ms(seconds),
            f"{example:.0f}",
            f"{_round(peak):,}",
            f"{peak / capacity.NODE_CORES:.0f}",
        ]
        for name, known, seconds, example, peak in capacity_rows(results)
    ]
    head = ["routing", "known", "seconds a request", "cores for 100/s", "cores for 10⁹ a day"]
    return table([*head, "nodes of 64 cores"], rows)


def network_table(results: Results) -> str:
    """Network and memory."""
    peak = capacity.daily(BILLION).peak
    size = scenarios.context_bytes(scenarios.LAYERS, scenarios.WIDTH, scenarios.TOKENS)
    contexts = scenarios.CACHE_BYTES // size
    rows: list[Sequence[object]] = [
        ["requests a second, mean and at the peak", f"{peak / capacity.PEAK:,.0f}, {peak:,.0f}"],
        ["answers about one layer", f"{_gigabits(results, 'one_layer'):.1f} Gbit/s"],
        ["answers about 12 layers", f"{_gigabits(results, 'all_layers'):.0f} Gbit/s"],
        ["cache of a context of 400 tokens", f"{size / 1e6:.1f} MB"],
        ["contexts in a cache of 8 GiB", f"{contexts}"],
    ]
    return table(["10⁹ requests a day, GPT-2 small", ""], rows)


def _gigabits(results: Results, kind: str) -> float:
    return capacity.gigabits(capacity.daily(BILLION).peak, results["answer"][kind])


def _with_machine(machine: str, made: str) -> str:
    return f"{machine}\n\n{made}"


def _share(value: float) -> str:
    return f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _ms(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.1f} ms"


def _round(value: float) -> int:
    return int(round(value, -2))


TABLES: Mapping[str, Callable[[Results], str]] = {
    "capacity": capacity_table,
    "network": network_table,
    "times": times_table,
    "compared": compared_table,
    "sizes": sizes_table,
    "rules": rules_table,
    "events": events_table,
}
"""The tables of docs/scaling.md by their names there, in its order."""
