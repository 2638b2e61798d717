"""Failure of a simulated node, and rates of replicas with an emulated device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.cluster import faults
from benchmarks.cluster.environment import interpreter
from benchmarks.cluster.ray import Fleet
from benchmarks.cluster.scenarios import across_nodes, emulated, ratio, two_nodes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(interpreter() is None, reason="no Ray: `make test-slow` installs it"),
]


@pytest.fixture(scope="module")
def device_bound() -> Iterator[Fleet]:
    """A cluster in which a forward pass takes a fixed time and no processor time."""
    with emulated() as fleet:
        yield fleet


def test_node_that_fails_loses_no_request() -> None:
    """When a replica's node fails, the other replica answers. Serve then uses a new node."""
    with two_nodes() as fleet:
        fleet.deploy(across_nodes())
        account = faults.lose_node(fleet, 1.0)
    assert not account.lost, account
    assert not account.refused, account


def test_hot_context_spills_to_the_other_replica(device_bound: Fleet) -> None:
    """Two replicas answer questions about one context at 1.7 times the rate of one, or more."""
    (spilled,) = ratio(device_bound, "a hot context", None, contexts=1)
    assert spilled.value >= 1.7, spilled


def test_rate_of_one_replica_does_not_increase(device_bound: Fleet) -> None:
    """Control: without a second replica the rate stays the same, so the ratio measures it."""
    (same,) = ratio(device_bound, "one replica", None, contexts=1, counts=(1, 1))
    assert same.value < 1.3, same
