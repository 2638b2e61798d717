"""Account of a load: how many requests were answered, refused and lost, judged by their answers."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import httpx

JSON, PROBLEM = "application/json", "application/problem+json"
RELATIVE = 1e-4
"""Relative tolerance for equal answers. Batching and caching change float32 results by less."""


class Outcome(NamedTuple):
    """Outcome of one request.

    Args:
        end: End of the request, in seconds of `time.perf_counter`.
        seconds: Duration in seconds, including retries.
        refused: Code of the problem; `""` if the answer was not a problem.
        lost: Kind of the loss; `""` if the answer was right or a problem.
    """

    end: float
    seconds: float
    refused: str = ""
    lost: str = ""

    @property
    def right(self) -> bool:
        """Whether the request got the right answer."""
        return not self.refused and not self.lost


@dataclass(frozen=True)
class Account:
    """Totals of a load.

    Args:
        sent: Number of requests.
        answered: Number of requests with the right answer.
        refused: Number of requests answered with a problem, by its code.
        lost: Number of other requests, by kind: the exception of a broken connection and its
            message, the status and media type of an answer that is not deltaw's, or `wrong body`.
        longest_stall: Longest time in which no client received a right answer, in seconds.
        seconds: Duration of the load in seconds.
        latencies: Seconds of each answered request, in the order of their ends.
    """

    sent: int
    answered: int
    refused: Mapping[str, int]
    lost: Mapping[str, int]
    longest_stall: float
    seconds: float
    latencies: tuple[float, ...] = field(repr=False)

    @property
    def lost_count(self) -> int:
        """Number of lost requests."""
        return sum(self.lost.values())

    @property
    def rate(self) -> float:
        """Answered requests per second."""
        return self.answered / self.seconds

    @property
    def median(self) -> float:
        """Median latency of the answered requests in seconds; NaN if there are none."""
        return median(self.latencies) if self.latencies else math.nan

    @property
    def slowest(self) -> float:
        """Latency of the slowest answered request in seconds; NaN if there is none."""
        return max(self.latencies, default=math.nan)

    def __str__(self) -> str:
        return (
            f"{self.sent} sent, {self.answered} answered, refused {dict(self.refused)}, lost "
            f"{dict(self.lost)}; {self.rate:.1f}/s, median {1000 * self.median:.0f} ms, slowest "
            f"{self.slowest:.2f} s, longest stall {self.longest_stall:.2f} s"
        )


def account(ended: Iterable[Outcome], start: float, end: float) -> Account:
    """Sum up the outcomes of a load.

    Args:
        ended: Outcomes in any order.
        start: Start of the load, in seconds of `time.perf_counter`.
        end: End of the load, likewise.
    """
    outcomes = sorted(ended)
    right = [one for one in outcomes if one.right]
    ends = [start, *(one.end for one in right), end]
    return Account(
        sent=len(outcomes),
        answered=len(right),
        refused=dict(Counter(one.refused for one in outcomes if one.refused)),
        lost=dict(Counter(one.lost for one in outcomes if one.lost)),
        longest_stall=max(later - earlier for earlier, later in itertools.pairwise(ends)),
        seconds=end - start,
        latencies=tuple(one.seconds for one in right),
    )


def judge(answer: httpx.Response, wanted: Sequence[float]) -> tuple[str, str]:
    """Compare an answer with the expected norms.

    Returns:
        Code of the problem, and kind of the loss, as in `Outcome`.
    """
    media = answer.headers.get("content-type", "").partition(";")[0]
    try:
        if media == PROBLEM and answer.json()["status"] == answer.status_code:
            return answer.json()["code"], ""
        if media == JSON and answer.status_code == 200:
            return "", "" if agree(norms(answer.json()), wanted) else "wrong body"
    except (ValueError, LookupError, TypeError):
        return "", "wrong body"
    return "", f"{answer.status_code} {media}"


def norms(answer: Mapping[str, Any]) -> list[float]:
    """Return the numbers of an answer that depend on its context and its query."""
    found: list[float] = []
    for update in answer["updates"]:
        found += [update["norm"], *(float(value) for value in update["mlp_in"].values())]
    return found


def agree(found: Sequence[float], wanted: Sequence[float]) -> bool:
    """Whether two answers agree up to rounding."""
    return len(found) == len(wanted) and all(
        math.isclose(one, other, rel_tol=RELATIVE) for one, other in zip(found, wanted, strict=True)
    )
