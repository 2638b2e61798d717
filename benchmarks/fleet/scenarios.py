"""Scenarios: fleets of several sizes, rules of routing, and the loss of caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from statistics import fmean

from benchmarks.fleet.replica import Limits, Times
from benchmarks.fleet.routing import Context
from benchmarks.fleet.simulation import Fleet, Record, Shape
from benchmarks.fleet.traffic import Summary, Traffic, rounds, summarize

Row = dict[str, str | float]
GIB = 2**30
LAYERS, WIDTH, TOKENS, NUMBER_BYTES = 12, 768, 400, 4
"""GPT-2 small in float32, and the tokens of a context."""
CACHE_BYTES = 8 * GIB
LIVE = 100
"""Contexts in use at a time, for each replica."""
SIZES = (1, 2, 5, 10, 20, 50, 100, 200)
CLIENTS = 8
"""Clients for each replica where a fleet's maximum rate is measured."""
USE = 0.7
"""Share of the maximum rate at which latency is measured."""
WARM = 1000
"""Requests for each replica that fill the caches."""
LEAST, TOGETHER = 20.0, 1000.0
"""Simulated seconds: minimum for a fleet, and total over the replicas of a small fleet."""
PROXY = 0.001
"""Seconds that a proxy adds to a request: the bar of route 1."""
CELLS, IN_CELL = 7, 4
"""Cells, and replicas in each."""
EVENT, BEFORE, WINDOW, AFTER = 60.0, 30.0, 5.0, 200.0
"""Seconds: time of the event, then lengths of the period before it, of a window, and of the period
after it."""
AWAY, PAUSE, RETURN = 20.0, 120.0, 180.0
"""Seconds of a rolling upgrade: absence of a cell, pause before the next cell, and duration of a
gradual return of a cell's contexts."""
UPGRADED = 2
"""Number of cells that the simulation upgrades, one after the other."""
RECOVERED = 0.97
"""A fleet has recovered when it reaches this share of its earlier value."""
SEED = 16
COMPARED_SETS, COMPARED_CONTEXTS = (1, 2, 3), 6
"""Seeds of the sets of eight contexts for real replicas, and number of contexts in a full cache."""
COUNTED = 20
"""Number of simulations that are averaged for each row of the comparison with real replicas."""


def context_bytes(layers: int, width: int, tokens: int, number: int = NUMBER_BYTES) -> int:
    """Bytes of a context in the prefix cache: its keys and values in every layer."""
    return layers * 2 * width * number * tokens


def limits(cache_bytes: int = CACHE_BYTES) -> Limits:
    """Limits of a replica with GPT-2 small and a prefix cache of this size."""
    return Limits(cache_bytes // context_bytes(LAYERS, WIDTH, TOKENS), TOKENS)


def two_replicas(
    times: Times, affinity: bool, contexts: int, positions: Sequence[float], questions: int
) -> tuple[float, float]:
    """Simulate the measurement with two replicas and four clients (`measure.measure_hits`).

    In that measurement the replicas, the proxy and the clients share two cores, so the time of a
    request outside the compute thread is added to the thread's time.

    Returns:
        The share of the questions whose context was cached, and answers a second.
    """
    shared = Times(*(each + times.outside for each in (times.cold, times.known, times.joined)))
    shape = Shape(2, route="affinity" if affinity else "random")
    known, rates = [], []
    for seed in range(COUNTED):
        fleet = Fleet(shape, shared, Limits(contexts, TOKENS), seed)
        fleet.send_in_turn(iter(rounds(positions, questions)), 4)
        records = fleet.run()
        known.append(fmean(one.known for one in records))
        rates.append(len(records) / fleet.now)
    return fmean(known), fmean(rates)


def warm(shape: Shape, times: Times) -> tuple[Fleet, Iterator[Context]]:
    """Return a fleet with full caches, and the contexts of its next requests."""
    replicas = shape.cells * shape.replicas
    fleet = Fleet(shape, times, limits(), SEED)
    contexts = Traffic(LIVE * replicas).requests(SEED)
    fleet.warm(islice(contexts, WARM * replicas))
    return fleet, contexts


def saturated(shape: Shape, times: Times) -> Summary:
    """Simulate a fleet at its maximum rate, whose clients always wait for an answer."""
    fleet, contexts = warm(shape, times)
    fleet.send_in_turn(contexts, CLIENTS * len(fleet.replicas))
    return _observed(fleet)


def loaded(shape: Shape, times: Times, rate: float) -> Summary:
    """Simulate a fleet whose requests arrive at random times, `rate` a second on average."""
    fleet, contexts = warm(shape, times)
    fleet.send_openly(contexts, rate)
    return _observed(fleet)


def _observed(fleet: Fleet) -> Summary:
    """Run a fleet, for a shorter time if it is large, and summarize the last three quarters."""
    seconds = max(LEAST, TOGETHER / len(fleet.replicas))
    return summarize(fleet.run(seconds), seconds / 4, seconds)


def sizes(times: Times, chosen: Sequence[int] = SIZES) -> Iterator[Row]:
    """Simulate fleets of several sizes, with affinity and with random routing."""
    for replicas in chosen:
        for route in ("affinity", "random"):
            shape = Shape(replicas, route=route, proxy=PROXY)
            full = saturated(shape, times)
            calm = loaded(shape, times, USE * full.answered)
            yield {
                "replicas": float(replicas),
                "routing": route,
                "known": full.known,
                "rate": full.answered,
                "median": calm.median,
                "p99": calm.p99,
                "refused": calm.refused,
            }


RULES: Mapping[str, Mapping[str, str | float]] = {
    "affinity": {},
    "affinity, 16 points on the ring": {"points": 16},
    "affinity, spills from 32 requests on": {"spill": 32},
    "affinity, spills from 8 requests on": {"spill": 8},
    "affinity, spills from 1.5 times the mean on": {"spill": 1, "balance": 1.5},
    "two choices": {"route": "two choices"},
    "random": {"route": "random"},
}
"""Rules of routing, by name. The rule with the mean is HAProxy's `hash-balance-factor 150`."""
RULED = 10
"""Number of replicas in the comparison of rules."""


def rules(times: Times) -> Iterator[Row]:
    """Compare rules of routing at the same rate: half of the maximum rate with affinity."""
    base = Shape(RULED, proxy=PROXY)
    rate = 0.5 * saturated(base, times).answered
    for name, options in RULES.items():
        shape = Shape(**{**asdict(base), **options})
        full, calm = saturated(shape, times), loaded(shape, times, rate)
        yield {
            "rule": name,
            "rate": full.answered,
            "known": calm.known,
            "median": calm.median,
            "p99": calm.p99,
            "refused": calm.refused,
        }


@dataclass(frozen=True)
class Event:
    """An event in which caches are lost.

    Args:
        happen: Function that causes it.
        admitted: Share of the contexts that the proxy admits at first.
        ramp: Seconds until it admits all contexts again.
        seconds: Seconds until the event is over.
    """

    happen: Callable[[Fleet], None]
    admitted: float = 1.0
    ramp: float = 0.0
    seconds: float = 0.0


def lose_cell(fleet: Fleet) -> None:
    """Lose the first cell for good."""
    fleet.stop(0)


def lose_caches(fleet: Fleet) -> None:
    """Empty all caches."""
    for replica in fleet.replicas:
        replica.cache.clear()


def upgrade(fleet: Fleet, ramp: float) -> None:
    """Drain, restart and return one cell after the other."""
    for cell in range(UPGRADED):
        begin = cell * (AWAY + ramp + PAUSE)
        fleet.after(begin, partial(fleet.stop, cell, drain=True))
        fleet.after(begin + AWAY, partial(fleet.start, cell, ramp))


def upgraded(ramp: float) -> Event:
    """Return an upgrade of several cells. It is over when the last one has its contexts back."""
    seconds = UPGRADED * (AWAY + ramp) + (UPGRADED - 1) * PAUSE
    return Event(partial(upgrade, ramp=ramp), seconds=seconds)


EVENTS: Mapping[str, Event] = {
    "a cell is lost": Event(lose_cell),
    "a cell is lost; 70 % admitted, all after 60 s": Event(lose_cell, 0.7, 60.0),
    "all caches are empty": Event(lose_caches),
    "all caches are empty; none admitted, all after 60 s": Event(lose_caches, 0.0, 60.0),
    "all caches are empty; none admitted, all after 120 s": Event(lose_caches, 0.0, 120.0),
    "rolling upgrade, a cell returns at once": upgraded(0.0),
    "rolling upgrade, a cell returns over 180 s": upgraded(RETURN),
}


def events(times: Times, chosen: Mapping[str, Event] = EVENTS) -> Iterator[Row]:
    """Simulate events in a fleet of cells at half of its maximum rate."""
    shape = Shape(IN_CELL, CELLS, proxy=PROXY)
    rate = 0.5 * saturated(shape, times).answered
    for name, event in chosen.items():
        yield {"event": name, "rate": rate, **watched(shape, times, rate, event)}


def watched(shape: Shape, times: Times, rate: float, event: Event) -> Row:
    """Simulate an event, and return the depth of the dip and the time until recovery."""
    end = EVENT + event.seconds + AFTER
    fleet, contexts = warm(shape, times)
    fleet.send_openly(contexts, rate)
    fleet.after(EVENT, partial(event.happen, fleet))
    fleet.after(EVENT, partial(fleet.admit, event.admitted, event.ramp))
    records = fleet.run(end)
    before = summarize(records, EVENT - BEFORE, EVENT)
    starts = [EVENT + WINDOW * i for i in range(round((end - EVENT) / WINDOW))]
    windows = _windows(records, starts)
    low = [
        start
        for start, one in zip(starts, windows, strict=True)
        if one.known < RECOVERED * before.known or one.refused > 1 - RECOVERED
    ]
    settled = summarize(records, EVENT, end)
    return {
        "known_before": before.known,
        "p99_before": before.p99,
        "known": min(one.known for one in windows),
        "answered": min(one.answered for one in windows) / rate,
        "p99": max(one.p99 for one in windows),
        "refused": settled.refused * settled.requests / rate,
        "recovered": max(0.0, max(low, default=0.0) + WINDOW - EVENT - event.seconds),
    }


def _windows(records: Sequence[Record], starts: Sequence[float]) -> list[Summary]:
    """Summaries of the windows that begin at these times."""
    parts: dict[int, list[Record]] = {}
    for one in records:
        parts.setdefault(int((one.sent + one.seconds - starts[0]) // WINDOW), []).append(one)
    return [summarize(parts.get(i, []), at, at + WINDOW) for i, at in enumerate(starts)]
