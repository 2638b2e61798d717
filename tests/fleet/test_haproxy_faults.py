"""Faults of replicas behind HAProxy, with real processes, and their effect on callers."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.cluster.haproxy import Fleet, Replica, haproxy_fleet
from benchmarks.cluster.load import UPDATES, Kind, client_of, loading
from benchmarks.cluster.questions import questions
from deltaw_client import DeltawClient
from deltaw_client.problems import ReplicaLost
from tests.api.wire import metric, problem, until
from tests.fleet.conftest import ROOT_PATH, emulated
from tests.fleet.test_haproxy import ADAPTER, BODY, log_lines, logged

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mortal(haproxy_binary: str, wide_folder: Path) -> Iterator[Fleet]:
    """Two replicas whose forwards take 0.3 s, so that requests are in progress at any time."""
    settings: dict[str, Any] = {"model": wide_folder, "threads": 1, "root_path": ROOT_PATH}
    with haproxy_fleet(binary=haproxy_binary, variables=emulated(0.3), **settings) as running:
        yield running


@pytest.fixture
def fleet(mortal: Fleet) -> Iterator[Fleet]:
    """The fleet with both replicas up. A replica whose process has ended is started again, and one
    that is stopped goes on."""
    yield mortal
    for index, replica in enumerate(mortal.replicas):
        if replica.process.poll() is None:
            replica.process.send_signal(signal.SIGCONT)
        else:
            mortal.await_ready(mortal.start(index))
    mortal.await_up(2)


@pytest.fixture
def fresh(fleet: Fleet) -> Fleet:
    """The fleet behind a new proxy, which has no connections to the replicas.

    If a connection breaks that earlier requests used, HAProxy closes the caller's connection
    without an answer and without a line in its log.
    """
    old = fleet.fronts[-1]
    fleet.start_front()
    fleet.await_up(2)
    old.kill()
    old.wait()
    return fleet


@pytest.mark.parametrize("kind", ["raw", "deltaw"])
def test_sigkill_of_a_replica_loses_no_request(fleet: Fleet, kind: Kind) -> None:
    """HAProxy sends the unanswered requests of a killed replica to the other one. No request is
    lost, even for a client without retries."""
    with loading(fleet.url, clients=8, kind=kind, bodies=questions(queries=4)) as load:
        load.await_answers(16)
        fleet.kill(0)
        load.await_answers(30)
        fleet.await_ready(fleet.start(0))
        fleet.await_up(2)
        load.await_answers(30)
    account = load.account()
    print(account)
    assert not account.lost
    assert not account.refused
    assert '"retries":"+1"' in fleet.front_log.read_text()


@pytest.mark.parametrize("kind", ["raw", "deltaw"])
def test_rolling_redeploy_loses_no_request(fleet: Fleet, kind: Kind) -> None:
    """If SIGTERM stops the replicas in turn and each restarts, no request is lost or refused."""
    with loading(fleet.url, clients=8, kind=kind, bodies=questions(queries=4)) as load:
        for index in range(2):
            load.await_answers(16)
            fleet.redeploy(index)
        load.await_answers(16)
    account = load.account()
    print(account)
    assert not account.lost
    assert not account.refused


def work_of(replica: Replica) -> float:
    """Number of questions that a replica has begun to answer since its start."""
    with client_of(replica.url) as client:
        return metric(client, "deltaw_input_tokens_count")


@pytest.mark.parametrize("path", ["/v1/adapters", f"{ROOT_PATH}/v1/adapters", "/v1/%61dapters"])
def test_write_of_an_adapter_is_not_sent_again(fresh: Fleet, path: str) -> None:
    """If a replica dies while it makes an adapter, the other replica gets no request.

    The caller gets a 502. The path may have a prefix and percent-encoded characters. The control is
    `test_sigkill_of_a_replica_loses_no_request`, in which questions are sent again.
    """
    name = f"write{path.replace('/', '.').replace('%', '.')}"
    before = [work_of(replica) for replica in fresh.replicas]

    def busy() -> int | None:
        now = [work_of(replica) for replica in fresh.replicas]
        return next((index for index in range(2) if now[index] > before[index]), None)

    with client_of(fresh.url) as client, ThreadPoolExecutor(2) as pool:
        body = {**ADAPTER, "query": [9, 10]}
        making = pool.submit(client.post, path, json=body, headers={"X-Request-ID": name})
        maker = until(busy)
        fresh.kill(maker)
        problem(making.result(), "replica_lost")
    assert not logged(fresh.replicas[1 - maker], request_id=name)


def sessions(fleet: Fleet) -> int:
    """Number of requests that the proxy has sent to replicas and that are not yet answered."""
    text = httpx.get(f"{fleet.operations}/metrics", trust_env=False).text
    start = 'haproxy_server_current_sessions{proxy="replicas"'
    lines = [line for line in text.splitlines() if line.startswith(start)]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines)


def test_client_does_not_repeat_a_write_of_a_replica_that_died(fresh: Fleet) -> None:
    """If the replica dies after it got the request for an adapter, `DeltawClient` does not send the
    request again: its caller learns that the outcome is unknown."""
    for replica in fresh.replicas:
        replica.process.send_signal(signal.SIGSTOP)
    with DeltawClient(fresh.url) as client, ThreadPoolExecutor(1) as pool:
        making = pool.submit(
            client.adapters.create, [5, 6, 7], kind="token", query=[9, 11], request_id="once.1"
        )
        until(lambda: sessions(fresh) or None)
        for index in range(2):
            fresh.kill(index)
        error = making.exception()
    assert isinstance(error, ReplicaLost)
    assert error.outcome_unknown

    def lines() -> list[str] | None:
        found = log_lines(fresh.front_log)
        return [line for line in found if '"request_id":"once.1"' in line] or None

    (line,) = until(lines)
    assert json.loads(line)["status"] == 502


def test_no_replica_is_a_problem_with_retry_after(fleet: Fleet) -> None:
    """While no replica runs, the front returns a 503 problem with `Retry-After`."""
    for index in range(2):
        fleet.kill(index)
    with client_of(fleet.url) as client:
        for _ in range(2):  # the first request finds dead connections, the second no replica
            said = problem(client.post(UPDATES, json=BODY), "loading")
            assert said.retryable
        fleet.await_up(0)
        problem(client.get("/v1/model"), "loading")


def test_replica_that_dns_no_longer_names_gets_no_request(fleet: Fleet) -> None:
    """A replica gets no request while DNS does not name its address, and gets some when DNS names
    it again."""

    def counts(name: str) -> list[int]:
        with client_of(fleet.url) as client:
            for number in range(8):
                headers = {"X-Request-ID": f"{name}.{number}"}
                assert client.get("/v1/model", headers=headers).is_success
        names = {f"{name}.{number}" for number in range(8)}
        ids = [[line.get("request_id") for line in logged(one)] for one in fleet.replicas]
        return [len(names.intersection(found)) for found in ids]

    address = fleet.addresses.pop()
    fleet.await_up(1)
    assert counts("without") == [8, 0]
    fleet.addresses.append(address)
    fleet.await_up(2)
    assert min(counts("with")) > 0


@pytest.mark.parametrize("kind", ["raw", "deltaw"])
def test_sigkill_of_one_of_two_proxies_loses_no_request_of_the_client(
    fleet: Fleet, kind: Kind
) -> None:
    """If a proxy is killed, `DeltawClient` sends its requests again and another proxy answers. As a
    control, a client without retries loses the requests that the killed proxy had."""
    first = fleet.fronts[-1]
    with loading(fleet.url, clients=8, kind=kind, bodies=questions(queries=4)) as load:
        load.await_answers(16)
        fleet.start_front()
        fleet.await_up(2)
        first.kill()
        load.await_answers(30)
    first.wait()
    account = load.account()
    print(account)
    assert not account.refused
    assert bool(account.lost) == (kind == "raw")


def test_proxy_that_gets_sigusr1_answers_its_requests(fleet: Fleet) -> None:
    """After SIGUSR1 a proxy answers the requests that it has and ends. Another proxy gets the new
    ones, so even a client without retries loses none."""
    first = fleet.fronts[-1]
    with loading(fleet.url, clients=8, bodies=questions(queries=4)) as load:
        load.await_answers(16)
        fleet.start_front()
        fleet.await_up(2)
        first.send_signal(signal.SIGUSR1)
        assert first.wait(100) == 0
        load.await_answers(30)
    account = load.account()
    print(account)
    assert not account.lost
    assert not account.refused
