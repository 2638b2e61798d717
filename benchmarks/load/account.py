"""Accounting: every request once as its client saw it, and once in the service's log."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.problems import PROBLEMS


@dataclass(frozen=True)
class Account:
    """What became of all requests.

    Args:
        sent: How many.
        outcomes: How many were `answered`, `refused`, `left` and `lost`.
        refused: How many by problem code.
        faults: What is wrong, a sentence for each request: lost, refused without a documented
            problem, or told otherwise by the log.
        milliseconds: 50th, 95th and 99th percentile and the slowest answer, by path.
    """

    sent: int
    outcomes: Mapping[str, int]
    refused: Mapping[str, int]
    faults: tuple[str, ...]
    milliseconds: Mapping[str, tuple[float, float, float, float]]


def account(records: Path, log: Path) -> Account:
    """Hold the clients' records against the service's log."""
    told = [json.loads(line) for line in records.read_text().splitlines()]
    logged = {line["request_id"]: line for line in _lines(log) if line.get("event") == "request"}
    times = defaultdict[str, list[float]](list)
    for each in told:
        if each["outcome"] == "answered":
            times[each["path"]].append(each["ms"])
    return Account(
        sent=len(told),
        outcomes=dict(Counter(each["outcome"] for each in told)),
        refused=dict(Counter(each["code"] for each in told if each["outcome"] == "refused")),
        faults=tuple(fault for each in told if (fault := _fault(each, logged.get(each["id"])))),
        milliseconds={path: _percentiles(taken) for path, taken in sorted(times.items())},
    )


def _fault(each: Mapping[str, Any], line: Mapping[str, Any] | None) -> str | None:
    """What is wrong with one request; None where nothing is."""
    name = f"{each['id']} {each['path']}"
    if each["outcome"] == "lost":
        return f"{name}: lost ({each['fault'] or each['status']})"
    if each["outcome"] == "left":
        # It may have left before its head was read, or after it was answered.
        return None
    if line is None:
        return f"{name}: {each['outcome']}, but not in the log"
    if line["status"] != each["status"]:
        return f"{name}: status {each['status']}, but {line['status']} in the log"
    code = each["code"]
    if each["outcome"] == "refused" and (
        code not in PROBLEMS
        or PROBLEMS[code].status != each["status"]
        or code in ("internal", "non_finite")
    ):
        return f"{name}: refused with {code!r} and {each['status']}"
    return None


def _lines(log: Path) -> Iterable[dict[str, Any]]:
    return (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))


def _percentiles(taken: list[float]) -> tuple[float, float, float, float]:
    p50, p95, p99 = np.percentile(taken, [50, 95, 99])
    return float(p50), float(p95), float(p99), max(taken)
