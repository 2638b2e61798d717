"""Faults of a fleet on Ray Serve, with real processes: what clients lose, and what they are told.

Each fault has a row in docs/scaling.md ("What fails, and what happens then"). The tests share a
cluster, and each deploys the configuration that it needs.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.cluster import faults
from benchmarks.cluster.environment import interpreter
from benchmarks.cluster.load import UPDATES, hits, loading, run
from benchmarks.cluster.questions import questions
from benchmarks.cluster.ray import (
    FRONT,
    MODEL,
    Fleet,
    running_fleet,
    wait_until,
)
from benchmarks.cluster.scenarios import CONTEXTS, ONE, PRESSED, SPREAD, THREE, TWO, replicated
from tests.api.conftest import poison
from tests.api.wire import problem, until
from tests.checkpoints import save_tiny
from tests.service_process import served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(interpreter() is None, reason="no Ray: `make test-slow` installs it"),
]
LEAVING = 4
"""Number of clients that disconnect."""
CPUS = 4.0
"""CPUs that the node declares: enough for the replicas of a test and for their successors."""
DEVICE_SECONDS = 0.25


@pytest.fixture(scope="module")
def cluster() -> Iterator[Fleet]:
    """A cluster of one node, without an application."""
    with running_fleet([CPUS]) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def deployed(cluster: Fleet) -> Callable[..., Fleet]:
    """A function that deploys a configuration, unless it is deployed already."""
    last: list[Any] = [None]

    def deploy(**options: Any) -> Fleet:
        config = replicated(**options)
        if config != last[0]:
            last[0] = None
            cluster.deploy(config)
            last[0] = config
        return cluster

    return deploy


@pytest.fixture
def fleet(deployed: Callable[..., Fleet]) -> Fleet:
    """Two fronts and two replicas of the bundled model."""
    running = deployed()
    for deployment in (MODEL, FRONT):
        running.await_replicas(2, deployment)
    return running


def test_context_without_header_reaches_its_replica_again(fleet: Fleet) -> None:
    """The front computes the context's key, so most rows are cached without the header too."""
    assert hits(fleet.url, header=False, seed=1) >= 0.90


def test_sigkill_of_model_replica_loses_no_request(fleet: Fleet) -> None:
    """When a model replica is killed, another one answers. The clients do not retry."""
    account = faults.kill_replica(fleet, "raw")
    assert not account.lost, account
    assert not account.refused, account


def test_sigkill_of_single_process_loses_requests(tiny_folder: Path) -> None:
    """Control: the same clients lose requests if no front sends them again."""
    bodies = questions(4, 4, 40, vocabulary=200)
    with served(model=tiny_folder) as alone, loading(alone.url, bodies=bodies) as load:
        load.await_answers(40)
        alone.process.kill()
        until(lambda: load.account().lost or None)
    assert load.account().lost


def test_sigkill_of_front_loses_no_request_of_the_client(fleet: Fleet) -> None:
    """When a front is killed, `DeltawClient` with at most two retries loses no request."""
    account = faults.kill_front(fleet, "deltaw")
    assert not account.lost, account
    assert not account.refused, account


def test_sigkill_of_all_model_replicas_is_answered_with_problems(fleet: Fleet) -> None:
    """While no replica runs, requests are refused with a retryable problem, and none is lost."""
    with loading(fleet.url) as load:
        load.await_answers(20)
        old = fleet.replicas(MODEL)
        for replica in old:
            fleet.kill(replica)
        fleet.await_replaced(old, len(old))
        load.await_answers(20)
    account = load.account()
    assert not account.lost, account
    assert set(account.refused) <= {"loading", "replica_lost", "queue_full"}, account


def test_stuck_replica_is_replaced(tmp_path: Path) -> None:
    """Ray Serve replaces a replica whose computation is stuck, and another one answers."""
    stuck = tmp_path / "stuck"
    options = {**TWO, "health_check_period_s": 1, "graceful_shutdown_timeout_s": 2}
    variables = {"EMULATED_DEVICE_STUCK": str(stuck)}
    with running_fleet([CPUS], device_seconds=0.001, variables=variables) as fleet:
        fleet.deploy(replicated(model=options, settings={"stuck_seconds": 3}))
        fleet.await_replicas(2)
        old = set(fleet.replicas(MODEL))
        assert httpx.post(fleet.url + UPDATES, json=questions(1, 1)[0], timeout=120.0).is_success
        assert set(fleet.replicas(MODEL)) == old  # the control: nothing is stuck
        stuck.touch()
        answer = httpx.post(fleet.url + UPDATES, json=questions(2, 1)[1], timeout=120.0)
        assert not stuck.exists()
        assert answer.status_code == 200, answer.text
        fleet.await_replicas(2)
        assert len(old - set(fleet.replicas(MODEL))) == 1


def test_rolling_redeploy_loses_no_request(fleet: Fleet, deployed: Callable[..., Fleet]) -> None:
    """A redeploy that replaces every replica loses and refuses no request."""
    account = faults.redeploy(fleet, replicated(settings={"queue_size": 63}))
    assert not account.lost, account
    assert not account.refused, account


def test_probes_are_answered_while_a_replica_hangs(fleet: Fleet) -> None:
    """Ready means that one replica is, and the metrics are those of the replicas that answer. HEAD
    takes the same way."""
    hung = fleet.replicas(MODEL)[0].pid
    os.kill(hung, signal.SIGSTOP)
    try:
        assert httpx.get(fleet.url + "/readyz", timeout=60.0).json() == {"status": "ready"}
        assert httpx.head(fleet.url + "/readyz", timeout=60.0).status_code == 200
        text = httpx.get(fleet.url + "/metrics", timeout=60.0).text
    finally:
        os.kill(hung, signal.SIGCONT)
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    names = {sample.labels["replica"] for family in families for sample in family.samples}
    assert len(names) == 1


def test_scale_down_loses_no_request(deployed: Callable[..., Fleet]) -> None:
    """A replica that is removed answers its requests first."""
    fleet = deployed(model=THREE)
    account = faults.scale(fleet, replicated(ONE), 1)
    assert not account.lost, account
    assert not account.refused, account


def test_client_that_leaves_is_counted_and_frees_its_replica(
    deployed: Callable[..., Fleet],
) -> None:
    """A client that disconnects is counted as 499, and its replica takes the next request."""
    fleet = deployed(model={**ONE, "max_ongoing_requests": 1})

    def counted(status: int) -> float:
        text = httpx.get(fleet.url + "/metrics", timeout=60.0).text
        wanted = rf'^deltaw_http_requests_total{{.*/trajectories",status="{status}"}} (.*)$'
        return sum(float(count) for count in re.findall(wanted, text, re.M))

    def await_counted(left: int) -> None:
        until(lambda: counted(499) == left or None, 60.0)

    for number in range(LEAVING):  # each would compute for seconds
        long = {"context": [number] * 400, "query": [6] * 36}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(fleet.url + "/v1/trajectories", json=long, timeout=0.5)
        # A client that leaves while its request waits for the replica would not be counted.
        await_counted(number + 1)
    answer = httpx.post(fleet.url + UPDATES, json=questions(1, 1)[0], timeout=120.0)
    assert answer.status_code == 200
    assert counted(200) == 0


def test_body_over_the_limit_is_refused_with_a_problem(deployed: Callable[..., Fleet]) -> None:
    """A body over the limit returns 413, with or without `Content-Length`. Later requests work."""
    fleet = deployed()
    large = b'{"context": "' + b"a" * (2 << 20) + b'", "query": "b"}'
    headers = {"Content-Type": "application/json"}
    with httpx.Client(base_url=fleet.url, timeout=60.0) as client:
        problem(client.post(UPDATES, content=large, headers=headers), "body_too_large")
        pieces = (large[i : i + 65536] for i in range(0, len(large), 65536))
        problem(client.post(UPDATES, content=pieces, headers=headers), "body_too_large")
        assert client.post(UPDATES, json=questions(1, 1)[0]).status_code == 200


def test_full_fleet_refuses_with_a_problem(deployed: Callable[..., Fleet]) -> None:
    """The front turns Ray's back-pressure into the problem `queue_full`."""
    fleet = deployed(model={**ONE, "max_ongoing_requests": 1, "max_queued_requests": 1})
    account = run(fleet.url, 5.0, clients=8)
    assert not account.lost, account
    assert set(account.refused) == {"queue_full"}, account
    assert account.answered


def test_router_class_changes_under_the_same_name(deployed: Callable[..., Fleet]) -> None:
    """A redeploy with another router class takes effect. Serve's default router (the control)
    spreads each context over all replicas, so fewer rows are cached."""
    assert hits(deployed(settings=PRESSED).url, False, CONTEXTS, seed=2) >= 0.90
    spread = deployed(model=SPREAD, settings=PRESSED)
    assert hits(spread.url, False, CONTEXTS, seed=3) <= 0.75
    assert hits(deployed(settings=PRESSED).url, False, CONTEXTS, seed=4) >= 0.90


def test_header_chooses_one_of_several_models(cluster: Fleet, tiny_folder: Path) -> None:
    """Two models run side by side. A request without the header gets the first; a request for an
    unknown model is refused; the metrics name the deployment of each."""
    config: dict[str, Any] = dict(replicated(ONE, name="two-models"))
    (application,) = config["applications"]
    front, model = application["deployments"]
    application["args"]["models"] = [
        {"name": "bundled", "model": "bundled"},
        {"name": "tiny", "model": str(tiny_folder)},
    ]
    names = [f"{MODEL}-{one}" for one in ("bundled", "tiny")]
    application["deployments"] = [front, *({**model, "name": name} for name in names)]
    cluster.deploy(config)
    with httpx.Client(base_url=cluster.url, timeout=60.0) as client:
        layers = {
            name: client.get("/v1/model", headers={"X-Deltaw-Model": name}).json()["n_layers"]
            for name in ("bundled", "tiny")
        }
        assert layers["bundled"] != layers["tiny"]
        assert client.get("/v1/model").json()["n_layers"] == layers["bundled"]
        problem(client.get("/v1/model", headers={"X-Deltaw-Model": "other"}), "unknown_model")
        text = client.get("/metrics").text
    assert set(re.findall(r'deployment="(\w+)"', text)) == {"bundled", "tiny"}


@pytest.mark.parametrize("fault", ["missing", "poisoned"])
def test_model_that_cannot_be_served_is_never_ready(
    deployed: Callable[..., Fleet], tmp_path: Path, fault: str
) -> None:
    """`serve status` says why a model cannot load or fails its self-check. The front answers with
    problems."""
    folder, sentence = tmp_path / "absent", "absent"
    if fault == "poisoned":
        with torch.inference_mode(False):
            folder, sentence = save_tiny(tmp_path / "poisoned"), "equivalence check"
        poison(folder, slice(0, None))
    fleet = deployed()
    once = {**ONE, "max_constructor_retry_count": 1}
    broken = replicated(once, name=fault, settings={"model": str(folder)})
    fleet.command("deploy", config=broken)
    wait_until(lambda: fleet.application(fault).get("status") == "DEPLOY_FAILED")
    assert sentence in fleet.reasons(fault)
    # A request waits for a replica until its deadline, unless Serve has given up on the model.
    for path, codes in (("/readyz", {"loading"}), ("/v1/model", {"loading", "deadline_exceeded"})):
        answer = httpx.get(fleet.url + path, timeout=120.0)
        assert answer.json()["code"] in codes
        problem(answer, answer.json()["code"])
