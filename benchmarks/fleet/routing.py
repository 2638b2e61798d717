"""Routing: the replica that a proxy sends a request to."""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

POINTS = 100
"""Points of each member on a ring, as in Ray Serve's router. HAProxy has 16 at weight 1."""
KEY_RANGE = 2.0**64


class Context(NamedTuple):
    """A context.

    Args:
        name: Its identity.
        position: Its place on every ring, in [0, 1).
    """

    name: int
    position: float


class Ring:
    """A consistent-hash ring. A member owns the intervals that end at its points.

    Args:
        members: Names of the members.
        points: Number of points of each member.
    """

    def __init__(self, members: Sequence[str], points: int = POINTS) -> None:
        placed = sorted(
            (position(f"{name}/{point}"), member)
            for member, name in enumerate(members)
            for point in range(points)
        )
        self._positions = [at for at, _ in placed]
        self._members = [member for _, member in placed]

    def order(self, at: float) -> Iterator[int]:
        """Yield members by their first point after a position: the owner, then its successors."""
        start, seen = bisect(self._positions, at), set[int]()
        for i in range(start, start + len(self._members)):
            member = self._members[i % len(self._members)]
            if member not in seen:
                seen.add(member)
                yield member


def position(name: str) -> float:
    """Place of a name on a ring, in [0, 1)."""
    return int(hashlib.blake2b(name.encode(), digest_size=8).hexdigest(), 16) / KEY_RANGE


def key_position(key: str) -> float:
    """Place of a context on a ring, given its key (16 hexadecimal digits)."""
    return int(key, 16) / KEY_RANGE
