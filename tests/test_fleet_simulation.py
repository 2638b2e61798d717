"""The simulation of a fleet agrees with queueing theory, hand-made cases and real replicas."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice, pairwise
from statistics import fmean

import numpy as np
import pytest

from benchmarks.fleet import page, scenarios
from benchmarks.fleet.__main__ import agrees
from benchmarks.fleet.measure import (
    KNOWN_ROWS,
    QUESTIONS,
    context_positions,
    measure_hits,
    served,
)
from benchmarks.fleet.replica import Limits, Replica, Request, Times
from benchmarks.fleet.routing import Context, Ring, position
from benchmarks.fleet.simulation import Fleet, Record, Shape
from benchmarks.fleet.traffic import Traffic, summarize

TIMES = Times(cold=0.5, known=0.02, joined=0.01)
ALONE = Limits(contexts=10, slots=1, queue=10**9, deadline=1e9)
"""One question at a time, and limits that refuse no question."""
COUNT = 8000


def new_contexts() -> Iterator[Context]:
    """Contexts that never return."""
    return (Context(i, position(str(i))) for i in count())


def mixed(cold: float, seed: int) -> Iterator[Context]:
    """One context that returns, and a share of contexts that never do."""
    draws = np.random.default_rng(seed)
    yield from (Context(i if new else 0, 0.5) for i, new in enumerate(draws.random(10**6) < cold))


def service(record: Record) -> float:
    """Compute seconds of a request."""
    return TIMES.known if record.known else TIMES.cold


def mean_wait(records: list[Record]) -> float:
    """Mean seconds that a request waits for its computation."""
    return fmean(one.seconds - service(one) for one in records)


def lindley(records: list[Record]) -> Iterator[float]:
    """Each request's wait: w' = max(0, w + s − (t' − t))."""
    wait = 0.0
    yield wait
    for one, after in pairwise(records):
        wait = max(0.0, wait + service(one) - (after.sent - one.sent))
        yield wait


@pytest.mark.parametrize("use", [0.3, 0.6])
def test_wait_at_one_replica_is_that_of_an_m_d_1_queue(use: float) -> None:
    """With equal service times s the mean wait is ρs / 2(1 − ρ)."""
    fleet = Fleet(Shape(1), TIMES, ALONE, seed=1)
    fleet.send_openly(islice(new_contexts(), COUNT), use / TIMES.cold)
    expected = use * TIMES.cold / (2 * (1 - use))
    assert mean_wait(fleet.run()) == pytest.approx(expected, rel=0.1)


def test_wait_with_cached_contexts_is_that_of_an_m_g_1_queue() -> None:
    """With two service times, each wait follows Lindley's recursion, and the mean wait is λE[s²] /
    2(1 − ρ) (Pollaczek–Khinchine). The formula for one service time is the control."""
    cold, rate = 0.1, 8.0
    fleet = Fleet(Shape(1), TIMES, ALONE, seed=1)
    fleet.send_openly(islice(mixed(cold, 11), COUNT), rate)
    records = fleet.run()
    waits = [one.seconds - service(one) for one in records]
    assert waits == pytest.approx(list(lindley(records)), abs=1e-6)
    mean = cold * TIMES.cold + (1 - cold) * TIMES.known
    square = cold * TIMES.cold**2 + (1 - cold) * TIMES.known**2
    assert fmean(waits) == pytest.approx(rate * square / (2 * (1 - rate * mean)), rel=0.1)
    assert fmean(waits) != pytest.approx(rate * mean**2 / (2 * (1 - rate * mean)), rel=0.5)


@pytest.mark.slow
def test_wait_at_high_use_is_that_of_an_m_d_1_queue() -> None:
    """The formula holds at a load where the mean converges slowly."""
    use = 0.85
    fleet = Fleet(Shape(1), TIMES, ALONE, seed=3)
    fleet.send_openly(islice(new_contexts(), 25 * COUNT), use / TIMES.cold)
    expected = use * TIMES.cold / (2 * (1 - use))
    assert mean_wait(fleet.run()) == pytest.approx(expected, rel=0.07)


def test_requests_in_the_fleet_follow_littles_law() -> None:
    """The mean number of requests in the fleet is their rate times their mean time there."""
    fleet, inside = Fleet(Shape(3), TIMES, Limits(100), seed=4), list[int]()

    def look() -> None:
        inside.append(fleet.pending)
        fleet.after(0.5, look)

    fleet.after(0.25, look)
    fleet.send_openly(Traffic(60).requests(4), rate=30.0)
    records = fleet.run(200.0)
    expected = len(records) / 200.0 * fmean(one.seconds for one in records)
    assert fmean(inside) == pytest.approx(expected, rel=0.1)


def test_cache_drops_the_context_that_was_used_least_recently() -> None:
    """The hits of a hand-made sequence on a cache of two contexts are as expected."""
    fleet = Fleet(Shape(1), TIMES, Limits(contexts=2))
    fleet.send_in_turn((Context(ord(name), 0.5) for name in "ABACABCA"), clients=1)
    known = [one.known for one in fleet.run()]
    assert known == [False, False, True, False, True, False, False, False]


def test_share_of_cached_contexts_is_ches_approximation() -> None:
    """An LRU cache of C contexts holds each for a time t with Σ(1 − exp(−p·t)) = C."""
    popularity = np.arange(1, 201) ** -0.8
    popularity /= popularity.sum()
    low, high = 0.0, 1e5
    for _ in range(60):
        held = (low + high) / 2
        low, high = (held, high) if (1 - np.exp(-popularity * held)).sum() < 50 else (low, held)
    expected = float((popularity * (1 - np.exp(-popularity * held))).sum())
    cache = Replica(TIMES, Limits(contexts=50))
    asked = list(islice(Traffic(200, questions=np.inf).requests(5), 12_000))
    hits = []
    for context in asked:
        hits.append(context.name in cache.cache)
        cache.use(context.name)
    assert fmean(hits[2000:]) == pytest.approx(expected, rel=0.03)


def test_forward_takes_runs_in_turn_up_to_the_row_budget() -> None:
    """A second new context waits for the next forward. The other questions end in the first one,
    as in `Scheduler._sharing`."""
    replica, settled = Replica(TIMES, Limits(contexts=10)), Counter[str]()
    replica.use(3)
    for name in (3, 1, 2, 1):
        replica.waiting.append(Request(0.0, Context(name, 0.5), lambda *_: settled.update("x")))
    assert replica.admit(0.0) == []
    assert replica.begin() == pytest.approx(TIMES.cold + 2 * TIMES.joined)
    assert [request.context.name for request in replica.end()] == [3, 1, 1]
    assert replica.begin() == pytest.approx(TIMES.cold)
    assert [request.context.name for request in replica.end()] == [2]


def test_removed_member_moves_its_own_contexts_alone() -> None:
    """If one of ten members leaves a ring, only its own contexts move, about a tenth of all."""
    names = [f"replica {i}" for i in range(10)]
    whole, less = Ring(names), Ring(names[:-1])
    places = [position(str(i)) for i in range(4000)]
    before = [next(whole.order(at)) for at in places]
    after = [next(less.order(at)) for at in places]
    moved = [one for one, other in zip(before, after, strict=True) if one != other]
    assert set(moved) == {9}
    assert 0.06 < len(moved) / len(places) < 0.14
    # They move to the next member in the order.
    assert [next(one for one in whole.order(at) if one != 9) for at in places] == after


def test_more_points_load_a_ring_more_equally() -> None:
    """The fullest of ten members has more contexts with 16 points each than with 256."""
    names, places = [f"replica {i}" for i in range(10)], [position(str(i)) for i in range(4000)]
    fullest = {
        points: max(Counter(next(ring.order(at)) for at in places).values())
        for points in (16, 256)
        for ring in (Ring(names, points),)
    }
    assert fullest[16] > fullest[256]
    assert fullest[256] < 1.3 * len(places) / 10


def steady(shape: Shape, seed: int = 0) -> list[Record]:
    """Records of ten simulated seconds of a fleet."""
    fleet = Fleet(shape, TIMES, Limits(contexts=60), seed)
    contexts = Traffic(20 * shape.cells * shape.replicas).requests(seed)
    fleet.warm(islice(contexts, 2000))
    fleet.send_in_turn(contexts, 4 * len(fleet.replicas))
    return fleet.run(10.0)


def test_same_seed_gives_the_same_records() -> None:
    """The simulation is deterministic; another seed gives other records."""
    assert steady(Shape(3, route="random")) == steady(Shape(3, route="random"))
    assert steady(Shape(3, route="random")) != steady(Shape(3, route="random"), seed=1)


def test_affinity_knows_more_contexts_than_other_routings() -> None:
    """Random routing and routing by load often reach a replica that has not cached the context."""
    near, far, balanced = (
        summarize(steady(Shape(8, route=route)), 0.0, 10.0)
        for route in ("affinity", "random", "two choices")
    )
    assert near.known > 0.9
    assert max(far.known, balanced.known) < 0.75
    assert near.answered > 2 * max(far.answered, balanced.answered)


def test_replica_refuses_what_exceeds_its_queue_and_drops_what_expires() -> None:
    """A replica accepts as many of 100 simultaneous requests as it has slots and queue places."""
    fleet = Fleet(Shape(1), TIMES, Limits(contexts=100, queue=20, deadline=10.25))
    for context in islice(new_contexts(), 100):
        fleet.send(context)
    outcomes = Counter(one.outcome for one in fleet.run())
    # One request is in progress when the others come. 15 more have slots, and 20 may wait. One is
    # answered every 0.5 s, also the one in progress at the deadline. The rest expire.
    assert outcomes == {"refused": 100 - 1 - 15 - 20, "answered": 21, "expired": 15}


def test_lost_cell_loses_no_request_and_moves_no_other_context() -> None:
    """The proxy sends the requests of a lost cell to the others, whose own contexts stay cached."""
    fleet = Fleet(Shape(2, cells=4), TIMES, Limits(contexts=1000))
    contexts = list(islice(Traffic(100, questions=np.inf).requests(6), 2000))
    fleet.warm(contexts)
    lost = {one.name for one in contexts if next(fleet.cells.order(one.position)) == 0}
    fleet.send_openly(iter(contexts), rate=40.0)
    fleet.after(10.0, lambda: fleet.stop(0))
    records = fleet.run()
    assert len(records) == len(contexts)
    assert fleet.pending == 0
    cold = sum(not one.known for one in records)
    assert 0 < cold <= len(lost) + fleet.shape.replicas * 16


def test_shed_contexts_are_refused_and_all_are_admitted_again() -> None:
    """The fleet refuses a share of the contexts, always the same ones, until the ramp ends."""
    fleet = Fleet(Shape(2), TIMES, Limits(contexts=1000))
    contexts = list(islice(Traffic(100, questions=np.inf).requests(7), 1500))
    fleet.warm(contexts)
    fleet.send_openly(iter(contexts), rate=30.0)
    fleet.admit(0.5, 20.0)
    records = fleet.run()
    early, late = (summarize(records, start, start + 5.0).refused for start in (0.0, 25.0))
    assert 0.2 < early < 0.7
    assert late == 0.0


def test_context_bytes_are_the_formula_of_the_document() -> None:
    """GPT-2 small keeps 400 tokens in 29.5 MB: 12 layers, keys and values, 768 floats each."""
    assert scenarios.context_bytes(12, 768, 400) == 29_491_200


def test_document_shows_the_stored_results() -> None:
    """The tables of docs/scaling.md are those of docs/fleet.json."""
    document = page.DOCUMENT.read_text(encoding="utf-8")
    assert page.written(document, page.stored()) == document
    other = json.loads(json.dumps(page.stored()))
    other["times"]["cold"] *= 2
    assert page.written(document, other) != document


def test_document_names_the_ratio_of_the_stored_times() -> None:
    """The document states the measured ratio of a cold question to a cached one."""
    times = page.service_times(page.stored())
    ratios = re.findall(r"about (\d+)\s+times", page.DOCUMENT.read_text(encoding="utf-8"))
    assert len(ratios) == 2
    assert all(int(one) == pytest.approx(times.cold / times.known, rel=0.15) for one in ratios)


def test_worked_example_follows_from_the_measured_times() -> None:
    """Cores = rate × (cold × (1 − known) + cached × known) / 0.6, for 100 requests a second and for
    10⁹ a day with a peak of 2.5 times the mean."""
    results = page.stored()
    times = results["times"]
    for _, known, seconds, example, peak in page.capacity_rows(results):
        assert seconds == pytest.approx(times["cold"] * (1 - known) + times["known"] * known)
        assert example == pytest.approx(100 * seconds / 0.6)
        assert peak == pytest.approx(2.5 * 1e9 / 86400 * seconds / 0.6)


def test_stored_comparison_agrees_within_the_bound() -> None:
    """The simulation gives the measured shares of cached rows within 15 %. Affinity has at least
    90 %, random routing at most 75 %."""
    compared = page.stored()["compared"]
    assert all(agrees(one) for one in compared)
    shares = {
        kind: [one["known"] for one in compared if one["routing"] == kind]
        for kind in ("affinity", "random")
    }
    assert min(shares["affinity"]) >= 0.9
    assert max(shares["random"]) <= 0.75


@pytest.mark.slow
def test_stored_rows_are_what_the_simulation_gives() -> None:
    """Simulating a small fleet and an event with the stored times gives the stored rows."""
    results = page.stored()
    times = page.service_times(results)
    assert list(scenarios.sizes(times, [2])) == [
        one for one in results["sizes"] if one["replicas"] == 2
    ]
    name = next(iter(scenarios.EVENTS))
    event = {name: scenarios.EVENTS[name]}
    assert list(scenarios.events(times, event)) == results["events"][:1]


@pytest.mark.slow
@pytest.mark.parametrize("affinity", [True, False])
def test_simulation_reproduces_two_real_replicas(affinity: bool) -> None:
    """The measured share of cached rows of two services with the bundled model agrees with the
    simulation within 15 %. A simulated cache with room for all contexts is the control."""
    room = 6 * scenarios.context_bytes(6, 256, 400)
    with served("bundled", room) as one, served("bundled", room) as other:
        measured = measure_hits([one, other], [5], 1, affinity).known
    positions = context_positions(1)
    simulated, roomy = (
        scenarios.two_replicas(TIMES, affinity, contexts, positions, QUESTIONS)[0] * KNOWN_ROWS
        for contexts in (6, 8)
    )
    assert agrees({"known": measured, "known_simulated": simulated}, ["known"])
    if not affinity:
        assert not agrees({"known": measured, "known_simulated": roomy}, ["known"])
