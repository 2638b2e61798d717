"""Scenarios of `make fleet`: each starts a fleet and measures it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

from benchmarks.bars import Bar
from benchmarks.cluster import faults, haproxy
from benchmarks.cluster.figures import (
    ADDED_BY_HAPROXY,
    ADDED_BY_RAY,
    AT_LEAST_CACHED,
    AT_MOST_CACHED,
    DOUBLED,
    SPILLED,
    Figure,
    lost,
)
from benchmarks.cluster.load import Kind, hits, latency, run
from benchmarks.cluster.questions import questions
from benchmarks.cluster.ray import Config, Fleet, configuration, running_fleet
from benchmarks.server import running_server

CPUS = 4.0
"""CPUs that a simulated node declares to Ray's scheduler. They do not limit its use of cores."""
DEVICE_SECONDS = 0.25
LOAD_SECONDS = 15.0
ROUNDS = 3
CONTEXTS = 16
PRESSED: Config = {"threads": 1, "prefix_cache_bytes": 56_000_000}
"""Settings of replicas whose cache has room for 11 of the 16 contexts. So two replicas can cache
all contexts only if each context is cached by just one of them."""
KINDS: tuple[Kind, ...] = ("raw", "deltaw")
ONE: Config = {"num_replicas": 1}
TWO: Config = {"num_replicas": 2}
THREE: Config = {"num_replicas": 3}
ROUTER = "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"
SPREAD: Config = {**TWO, "request_router_config": {"request_router_class": ROUTER}}
"""Options of a deployment with Serve's default router, which ignores the context."""


class Scenario(NamedTuple):
    """A fleet to start, and a function that measures it."""

    start: Callable[[], AbstractContextManager[Any]]
    measure: Callable[[Any], Iterator[Figure]]


def replicated(model: Config = TWO, **changed: Any) -> Config:
    """Return a configuration with two fronts and, by default, two replicas."""
    return configuration(model=model, front=TWO, **changed)


def added(url: str, bar: Bar) -> Iterator[Figure]:
    """Compare the latency of a fleet with that of a single process, alternating between the two."""
    with running_server(threads=1) as plain:
        alone = f"http://127.0.0.1:{plain.port}"
        rounds = [(latency(alone, 100), latency(url, 100)) for _ in range(ROUNDS)]
    for name, limit in (("livez", None), ("weight-updates", bar)):
        one, other = (median(found[side][name] for found in rounds) for side in (0, 1))
        note = f"medians {one:.2f} ms and {other:.2f} ms"
        yield Figure(f"added median, {name}", other - one, "ms", limit, note)


def haproxy_latency(fleet: haproxy.Fleet) -> Iterator[Figure]:
    """Time that HAProxy adds to a request."""
    yield from added(fleet.url, ADDED_BY_HAPROXY)


def haproxy_affinity(fleet: haproxy.Fleet) -> Iterator[Figure]:
    """Share of cached rows behind HAProxy."""
    yield Figure(
        "rows cached, header", hits(fleet.url, True, CONTEXTS, seed=1), "", AT_LEAST_CACHED
    )
    yield Figure(
        "rows cached, body alone", hits(fleet.url, False, CONTEXTS, seed=2), "", AT_LEAST_CACHED
    )


def haproxy_spread(fleet: haproxy.Fleet) -> Iterator[Figure]:
    """Share of cached rows behind HAProxy without affinity, as a control."""
    yield Figure(
        "rows cached, no affinity", hits(fleet.url, True, CONTEXTS, seed=3), "", AT_MOST_CACHED
    )


def haproxy_kill(fleet: haproxy.Fleet) -> Iterator[Figure]:
    """Requests lost when a process is killed and started again."""
    for kind in KINDS:
        with faults.disturbed(fleet.url, kind) as load:
            fleet.replicas[0].process.kill()
            fleet.replicas[0].process.wait()
            fleet.await_ready(fleet.start(0))
            fleet.await_up(len(fleet.addresses))
        yield from lost(f"SIGKILL of a process, {kind}", load.account())


def haproxy_redeploy(fleet: haproxy.Fleet) -> Iterator[Figure]:
    """Requests lost when the processes are drained and replaced one after the other."""
    with faults.disturbed(fleet.url, "raw") as load:
        for index in range(len(fleet.addresses)):
            fleet.redeploy(index)
    yield from lost("rolling redeploy, raw", load.account())


def ray_latency(fleet: Fleet) -> Iterator[Figure]:
    """Time that Ray Serve adds to a request."""
    fleet.deploy(replicated())
    yield from added(fleet.url, ADDED_BY_RAY)


def ray_affinity(fleet: Fleet) -> Iterator[Figure]:
    """Share of cached rows under Ray Serve, with the hash router and with the default one."""
    fleet.deploy(replicated(settings=PRESSED))
    yield Figure(
        "rows cached, header", hits(fleet.url, True, CONTEXTS, seed=1), "", AT_LEAST_CACHED
    )
    yield Figure(
        "rows cached, body alone", hits(fleet.url, False, CONTEXTS, seed=2), "", AT_LEAST_CACHED
    )
    fleet.deploy(replicated(SPREAD, name="spread", settings=PRESSED))
    yield Figure(
        "rows cached, default router", hits(fleet.url, True, CONTEXTS, seed=3), "", AT_MOST_CACHED
    )


def ray_kill(fleet: Fleet) -> Iterator[Figure]:
    """Requests lost when a model replica is killed."""
    fleet.deploy(replicated())
    for kind in KINDS:
        yield from lost(f"SIGKILL of a model replica, {kind}", faults.kill_replica(fleet, kind))


def ray_kill_front(fleet: Fleet) -> Iterator[Figure]:
    """Requests lost when a front is killed. Only the client with retries has a bar."""
    fleet.deploy(replicated())
    yield from lost("SIGKILL of a front, deltaw", faults.kill_front(fleet, "deltaw"))
    yield from lost("SIGKILL of a front, raw", faults.kill_front(fleet, "raw"), None)


def ray_node(fleet: Fleet) -> Iterator[Figure]:
    """Requests lost when a simulated node fails and another one is added."""
    fleet.deploy(across_nodes())
    yield from lost("a node lost, then one joins, raw", faults.lose_node(fleet, 1.0))


def ray_redeploy(fleet: Fleet) -> Iterator[Figure]:
    """Requests lost when every replica is replaced."""
    fleet.deploy(replicated())
    changed = replicated(settings={"queue_size": 63})
    yield from lost("rolling redeploy, raw", faults.redeploy(fleet, changed))


def ray_scale(fleet: Fleet) -> Iterator[Figure]:
    """Requests lost when replicas are removed."""
    fleet.deploy(replicated(THREE))
    yield from lost("scale-down from 3 to 1, raw", faults.scale(fleet, replicated(ONE), 1))


def ray_hot(fleet: Fleet) -> Iterator[Figure]:
    """Rate of two replicas divided by that of one: one hot context, emulated device."""
    yield from ratio(fleet, "a hot context, device emulated", SPILLED, contexts=1)


def ray_two(fleet: Fleet) -> Iterator[Figure]:
    """Rate of two replicas divided by that of one: many contexts, emulated device."""
    yield from ratio(fleet, "two replicas / one, device emulated", DOUBLED, contexts=32)


def ray_cores(fleet: Fleet) -> Iterator[Figure]:
    """Rate of two replicas divided by that of one: many contexts, this machine's cores."""
    yield from ratio(fleet, "two replicas / one, real compute", None, contexts=32, tokens=400)


def ratio(
    fleet: Fleet,
    name: str,
    bar: Bar | None,
    contexts: int,
    tokens: int = 40,
    counts: tuple[int, int] = (1, 2),
) -> Iterator[Figure]:
    """Compare the rates of two numbers of replicas, which cache nothing."""
    rates = list[float]()
    bodies = questions(contexts, 16 // contexts or 1, tokens)
    for count in counts:
        fleet.deploy(device_bound(count))
        fleet.await_replicas(count)
        rates.append(run(fleet.url, LOAD_SECONDS, 16, bodies=bodies).rate)
    note = f"{rates[0]:.1f}/s and {rates[1]:.1f}/s, 16 clients"
    yield Figure(name, rates[1] / rates[0], "times", bar, note)


def device_bound(replicas: int) -> Config:
    """Return a configuration whose replicas take four requests at a time and cache nothing."""
    options = {"num_replicas": replicas, "max_ongoing_requests": 4}
    settings = {"batching": False, "prefix_cache_bytes": 0}
    return configuration(model=options, front={"num_replicas": 1}, settings=settings)


def across_nodes() -> Config:
    """Return a configuration with one replica on each node, and the front on the head."""
    front = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0, "resources": {"head": 0.01}}}
    return configuration(model={"num_replicas": 2, "max_replicas_per_node": 1}, front=front)


def one_node() -> AbstractContextManager[Fleet]:
    """Ray Serve on one node."""
    return running_fleet([CPUS])


def two_nodes() -> AbstractContextManager[Fleet]:
    """Ray Serve on two simulated nodes."""
    return running_fleet([1.0, 1.0])


def emulated() -> AbstractContextManager[Fleet]:
    """Ray Serve on one node with an emulated device."""
    return running_fleet([CPUS], DEVICE_SECONDS)


def two_processes() -> AbstractContextManager[haproxy.Fleet]:
    """HAProxy and two processes."""
    return haproxy.haproxy_fleet(**PRESSED)


@contextmanager
def without_affinity() -> Iterator[haproxy.Fleet]:
    """HAProxy with two processes, to which it sends requests in turn, without affinity."""
    folder = haproxy.CONFIG.parent
    text = haproxy.CONFIG.read_text().replace(
        "default-path config", f"default-path origin {folder}"
    )
    text = re.sub(r"(?m)^ *hash-(type|key) .*\n", "", text)
    text = re.sub(r"(?m)^( *)balance hash .*$", r"\1balance roundrobin", text)
    with NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(text)
        file.flush()
        with haproxy.haproxy_fleet(config=Path(file.name), **PRESSED) as fleet:
            yield fleet


SCENARIOS = {
    "haproxy-latency": Scenario(two_processes, haproxy_latency),
    "haproxy-affinity": Scenario(two_processes, haproxy_affinity),
    "haproxy-kill": Scenario(two_processes, haproxy_kill),
    "haproxy-redeploy": Scenario(two_processes, haproxy_redeploy),
    "haproxy-no-affinity": Scenario(without_affinity, haproxy_spread),
    "ray-latency": Scenario(one_node, ray_latency),
    "ray-affinity": Scenario(one_node, ray_affinity),
    "ray-kill": Scenario(one_node, ray_kill),
    "ray-kill-front": Scenario(one_node, ray_kill_front),
    "ray-redeploy": Scenario(one_node, ray_redeploy),
    "ray-scale-down": Scenario(one_node, ray_scale),
    "ray-two-replicas": Scenario(one_node, ray_cores),
    "ray-node": Scenario(two_nodes, ray_node),
    "ray-hot-context": Scenario(emulated, ray_hot),
    "ray-two-emulated": Scenario(emulated, ray_two),
}
"""Scenarios by name. Consecutive scenarios with the same `start` share one fleet."""
