"""Accounting: each request as its client saw it, compared with the service's log."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.problems import PROBLEMS

UNEXPECTED = ("internal", "non_finite")
"""Problem codes that no request of the clients may get."""


@dataclass(frozen=True)
class Account:
    """The outcomes of all requests.

    Args:
        sent: Number of requests.
        outcomes: Number of requests by outcome: `answered`, `refused`, `left` or `lost`.
        refused: Number of refused requests by problem code.
        faults: A sentence for each request that was lost, refused without a documented problem,
            or logged with another status.
        seconds: Seconds of each answered request, by path.
    """

    sent: int
    outcomes: Mapping[str, int]
    refused: Mapping[str, int]
    faults: tuple[str, ...]
    seconds: Mapping[str, list[float]]


def account(records: Path, log: Path) -> Account:
    """Compare the clients' records with the service's log."""
    requests = [json.loads(line) for line in records.read_text().splitlines()]
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    logged = {line["request_id"]: line for line in lines if line.get("event") == "request"}
    seconds = defaultdict[str, list[float]](list)
    for request in requests:
        if request["outcome"] == "answered":
            seconds[request["path"]].append(request["seconds"])
    faults = (_fault(request, logged.get(request["id"])) for request in requests)
    return Account(
        sent=len(requests),
        outcomes=dict(Counter(request["outcome"] for request in requests)),
        refused=dict(Counter(code for request in requests if (code := request["code"]))),
        faults=tuple(fault for fault in faults if fault is not None),
        seconds=dict(sorted(seconds.items())),
    )


def _fault(request: Mapping[str, Any], line: Mapping[str, Any] | None) -> str | None:
    """The fault of one request; None for a correct one."""
    name, status, code = f"{request['id']} {request['path']}", request["status"], request["code"]
    match request["outcome"]:
        case "left":  # perhaps before its head was read, or after it was answered
            return None
        case "lost":
            return f"{name}: lost ({request['fault'] or status})"
        case "refused" if (
            code in UNEXPECTED or code not in PROBLEMS or PROBLEMS[code].status != status
        ):
            return f"{name}: refused with {code!r} and {status}"
    if line is None:
        return f"{name}: {request['outcome']}, but not in the log"
    if line["status"] != status:
        return f"{name}: status {status}, but {line['status']} in the log"
    return None
