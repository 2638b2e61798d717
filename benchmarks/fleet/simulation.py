"""A discrete-event simulation of clients, a proxy and replicas.

It needs only a heap of (time, function) pairs. simpy would be another dependency, and it takes
several times as long for the same model, because it needs a process for each request.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice, pairwise
from operator import setitem
from typing import NamedTuple

from benchmarks.fleet.replica import Limits, Outcome, Replica, Request, Times
from benchmarks.fleet.routing import POINTS, Context, Ring

RETRY_SECONDS = 1.0
"""Seconds until a client sends its next request after a refusal."""
STEPS = 30
"""Number of steps in which an admitted share of the contexts grows to 1."""
SPREAD = 1e6
"""Factor that makes a share of the contexts independent of their places on the rings."""
FALLBACKS = 2
"""Number of replicas after the first to which its requests may spill over, as in Ray Serve."""


@dataclass(frozen=True)
class Shape:
    """The fleet and its proxy.

    Args:
        replicas: Number of replicas in each cell.
        cells: Number of cells. One ring chooses the cell, another the replica in it.
        route: Name of the routing in `ROUTES`.
        spill: Number of requests at a replica from which on the proxy asks the ring's next one.
        balance: The same limit, as a multiple of the mean of all replicas. The larger one applies.
        proxy: Seconds that the proxy adds to a request.
        points: Points of each member on a ring.
    """

    replicas: int
    cells: int = 1
    route: str = "affinity"
    spill: float = math.inf
    balance: float = 0.0
    proxy: float = 0.0
    points: int = POINTS


class Record(NamedTuple):
    """Outcome of a request.

    Args:
        sent: Time at which it was sent.
        seconds: Seconds until its answer or its refusal.
        outcome: Kind of outcome.
        known: Whether its context was cached.
    """

    sent: float
    seconds: float
    outcome: Outcome
    known: bool


class Fleet:
    """A simulated fleet.

    Args:
        shape: Cells, replicas and routing.
        times: Service times of each replica.
        limits: Limits of each replica.
        seed: Seed of the random numbers.
    """

    def __init__(self, shape: Shape, times: Times, limits: Limits, seed: int = 0) -> None:
        self.shape = shape
        self.outside = times.outside + shape.proxy
        self.random = random.Random(seed)
        self.now = 0.0
        self.pending = 0
        self.admitted = 1.0
        self.opened = [1.0] * shape.cells
        self.records: list[Record] = []
        self.replicas = [Replica(times, limits) for _ in range(shape.cells * shape.replicas)]
        self.cells = Ring([f"cell {i}" for i in range(shape.cells)], shape.points)
        names = [f"replica {i}" for i in range(shape.replicas)]
        self.within = Ring(names, shape.points)
        self._route = ROUTES[shape.route]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Schedule an event."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def run(self, until: float = math.inf) -> list[Record]:
        """Run all events up to a time, and return the records of all requests so far."""
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= until:
            self.now, _, event = pop(events)
            event()
        self.now = until if math.isfinite(until) else self.now
        return self.records

    def warm(self, contexts: Iterable[Context]) -> None:
        """Fill the caches as these requests would, in no simulated time."""
        for context in contexts:
            next(self._route(self, context)).use(context.name)

    def send_openly(self, contexts: Iterator[Context], rate: float) -> None:
        """Send requests at random times (Poisson), `rate` a second on average."""

        def arrive() -> None:
            if (context := next(contexts, None)) is not None:
                self.send(context)
                self.after(self.random.expovariate(rate), arrive)

        self.after(self.random.expovariate(rate), arrive)

    def send_in_turn(self, contexts: Iterator[Context], clients: int) -> None:
        """Let several clients each send a request, wait for its outcome, and send the next."""

        def ask() -> None:
            if (context := next(contexts, None)) is not None:
                self.send(context, then=ask)

        for _ in range(clients):
            self.after(0.0, ask)

    def send(self, context: Context, then: Callable[[], None] | None = None) -> None:
        """Send a request, and call `then` after its outcome."""
        self.pending += 1
        request = Request(self.now, context, partial(self._settle, then))
        if rank(context) >= self.admitted:
            request.settle(request, "refused")
        else:
            self._place(request)

    def stop(self, cell: int, drain: bool = False) -> None:
        """Take a cell's replicas out of the rings.

        Args:
            cell: The cell.
            drain: Whether the replicas answer the requests that they have. Otherwise the proxy
                sends these to other replicas.
        """
        for replica in self.cell(cell):
            replica.taking = False
        if not drain:
            for request in [one for replica in self.cell(cell) for one in replica.lose()]:
                self._place(request)

    def start(self, cell: int, ramp: float = 0.0) -> None:
        """Put a cell's replicas back into the rings, with empty caches.

        Args:
            cell: The cell.
            ramp: Seconds until it has all of its contexts back.
        """
        for replica in self.cell(cell):
            replica.cache.clear()
            replica.taking = True
        self._grow(0.0, ramp, partial(setitem, self.opened, cell))

    def admit(self, share: float, ramp: float) -> None:
        """Admit only a share of the contexts at first, and refuse the others.

        Args:
            share: Share that is admitted at first.
            ramp: Seconds until all contexts are admitted.
        """
        self._grow(share, ramp, partial(setattr, self, "admitted"))

    def _grow(self, share: float, ramp: float, set_to: Callable[[float], None]) -> None:
        for step in range(STEPS + 1):
            now = share + (1 - share) * step / STEPS
            self.after(ramp * step / STEPS, partial(set_to, now))

    def cell(self, cell: int) -> Sequence[Replica]:
        """The replicas of a cell."""
        return self.replicas[cell * self.shape.replicas : (cell + 1) * self.shape.replicas]

    def _place(self, request: Request) -> None:
        """Send a request to the replica that the routing and the loads determine."""
        if not any(replica.taking for replica in self.replicas):
            request.settle(request, "refused")
            return
        shape = self.shape
        order = (one for one in self._route(self, request.context) if one.taking)
        chosen = next(order)
        full = max(shape.spill, shape.balance * self.pending / len(self.replicas))
        if chosen.load >= full:
            free = (one for one in islice(order, FALLBACKS) if one.load < full)
            chosen = next(free, chosen)
        if not chosen.accepts():
            request.settle(request, "refused")
            return
        chosen.waiting.append(request)
        if chosen.completing is None:
            self._turn(chosen)

    def _turn(self, replica: Replica) -> None:
        """Let an idle replica begin its next forward."""
        for request in replica.admit(self.now):
            request.settle(request, "expired")
        if replica.active and replica.completing is None:
            self.after(replica.begin(), partial(self._end, replica, replica.life))

    def _end(self, replica: Replica, life: int) -> None:
        if life == replica.life:
            for request in replica.end():
                request.settle(request, "answered")
            if replica.completing is None:
                self._turn(replica)

    def _settle(self, then: Callable[[], None] | None, request: Request, outcome: Outcome) -> None:
        self.pending -= 1
        seconds = self.now - request.sent + self.outside
        self.records.append(Record(request.sent, seconds, outcome, request.known))
        if then is not None:
            self.after(self.outside if outcome == "answered" else RETRY_SECONDS, then)


def rank(context: Context) -> float:
    """Rank of a context in [0, 1). A share of all contexts means those with a smaller rank."""
    return context.position * SPREAD % 1


def by_affinity(fleet: Fleet, context: Context) -> Iterator[Replica]:
    """Yield replicas in the order of the rings: those of the context's own cell first."""
    for cell in fleet.cells.order(context.position):
        if rank(context) >= fleet.opened[cell]:
            continue
        replicas = fleet.cell(cell)
        yield from (replicas[i] for i in fleet.within.order(context.position))


def at_random(fleet: Fleet, _context: Context) -> Iterator[Replica]:
    """Yield random replicas without end."""
    while True:
        yield fleet.random.choice(fleet.replicas)


def by_load(fleet: Fleet, context: Context) -> Iterator[Replica]:
    """Yield the less loaded of two random replicas, without end."""
    for one, other in pairwise(at_random(fleet, context)):
        yield min((one, other), key=lambda replica: (not replica.taking, replica.load))


ROUTES: Mapping[str, Callable[[Fleet, Context], Iterator[Replica]]] = {
    "affinity": by_affinity,
    "random": at_random,
    "two choices": by_load,
}
"""Routings by name. Each yields replicas in the order in which the proxy tries them."""
