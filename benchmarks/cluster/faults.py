"""Faults in a Ray fleet under load. Each function causes one and returns the clients' account."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.cluster.account import Account
from benchmarks.cluster.load import Kind, Load, loading
from benchmarks.cluster.ray import FRONT, MODEL, Config, Fleet

CLIENTS = 8
BEFORE, AFTER = 40, 80
"""Number of right answers to wait for before the fault, and after the fleet has recovered."""


@contextmanager
def disturbed(url: str, kind: Kind) -> Iterator[Load]:
    """Put load on a service before, during and after the fault that the block causes."""
    with loading(url, CLIENTS, kind) as load:
        load.await_answers(BEFORE)
        yield load
        load.await_answers(AFTER)


def kill_replica(fleet: Fleet, kind: Kind = "raw", deployment: str = MODEL) -> Account:
    """Send SIGKILL to one replica of a deployment, and wait for its successor."""
    with disturbed(fleet.url, kind) as load:
        old = fleet.replicas(deployment)
        fleet.kill(old[0])
        fleet.await_replaced(old[:1], len(old))
    return load.account()


def kill_front(fleet: Fleet, kind: Kind = "deltaw") -> Account:
    """Send SIGKILL to one front, and wait for its successor."""
    return kill_replica(fleet, kind, FRONT)


def lose_node(fleet: Fleet, cpus: float, kind: Kind = "raw") -> Account:
    """Kill a node that has a replica of the model and no front, then add another node."""
    fronts = {one.node_id for one in fleet.replicas(FRONT)}
    with disturbed(fleet.url, kind) as load:
        models = fleet.replicas(MODEL)
        lost = next(one for one in models if one.node_id not in fronts)
        fleet.remove_node(lost.node_id)
        load.await_answers(AFTER)
        fleet.add_node(cpus)
        fleet.await_replaced([lost], len(models))
    return load.account()


def redeploy(fleet: Fleet, config: Config, kind: Kind = "raw") -> Account:
    """Deploy a configuration that replaces every replica of the model."""
    with disturbed(fleet.url, kind) as load:
        old = fleet.replicas(MODEL)
        fleet.deploy(config)
        fleet.await_replaced(old, len(old))
        fleet.await_running()
    return load.account()


def scale(fleet: Fleet, config: Config, replicas: int, kind: Kind = "raw") -> Account:
    """Deploy a configuration with another number of model replicas."""
    with disturbed(fleet.url, kind) as load:
        fleet.deploy(config)
        fleet.await_replicas(replicas)
    return load.account()
