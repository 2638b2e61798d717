"""Figures of a fleet, and the bars that they have to reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.bars import Bar
from benchmarks.cluster.account import Account

AT_LEAST_CACHED, AT_MOST_CACHED = Bar(">=", None, 0.90), Bar("<=", None, 0.75)
NONE_LOST = Bar("<=", None, 0)
ADDED_BY_HAPROXY, ADDED_BY_RAY = Bar("<=", None, 1.0), Bar("<=", None, 8.0)
SPILLED, DOUBLED = Bar(">=", None, 1.7), Bar(">=", None, 1.8)


@dataclass(frozen=True)
class Figure:
    """One figure.

    Args:
        name: Name of the measured quantity.
        value: The figure.
        unit: Its unit.
        bar: The bar to reach; None if there is none.
        note: Values that the figure was computed from.
        account: Account of the requests behind it, if there is one.
    """

    name: str
    value: float
    unit: str
    bar: Bar | None = None
    note: str = ""
    account: Account | None = None

    @property
    def missed(self) -> bool:
        """Whether the figure has a bar and does not reach it."""
        return self.bar is not None and self.bar.reached(self.value) is False

    @property
    def loss(self) -> bool:
        """Whether requests were lost although the bar allows none."""
        return self.bar is NONE_LOST and self.missed

    def __str__(self) -> str:
        told = f"  {self.name:<52}{self.value:>9.3g} {self.unit:<9}"
        if self.bar is not None:
            told += f"bar: {self.bar.side} {self.bar.limit:g}, {'NO' if self.missed else 'yes'}"
        return told + (f"\n      {self.note}" if self.note else "")


def lost(name: str, account: Account, bar: Bar | None = NONE_LOST) -> Iterator[Figure]:
    """Yield the number of requests without a right answer, and the longest stall."""
    count = float(account.lost_count + sum(account.refused.values()))
    yield Figure(f"{name}: lost or refused", count, "requests", bar, str(account), account)
    yield Figure(f"{name}: longest stall", account.longest_stall, "s")
