"""HAProxy in front of two replicas: its routing, its streaming and its own answers."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.cluster.haproxy import CONFIG, Fleet, Replica, haproxy_fleet
from benchmarks.cluster.load import client_of, hits
from benchmarks.cluster.questions import affinity, token_ids
from schemas.affinity import CONTEXT_HEADER
from tests.api.wire import CANARY, problem, until
from tests.fleet.conftest import ROOT_PATH

pytestmark = pytest.mark.slow

UPDATES = "/v1/weight-updates"
MiB = 1 << 20
NDJSON = {"Content-Type": "application/x-ndjson"}
BODY: dict[str, Any] = {"context": token_ids(40, "one"), "query": [7], "layers": [-1]}
ADAPTER = {"kind": "token", "context": [5, 6, 7], "query": [8, 9]}


def log_lines(log: Path) -> list[str]:
    """The JSON lines of a log, without one that is not yet complete."""
    whole, _, _ = log.read_text().rpartition("\n")
    return [line for line in whole.splitlines() if line.startswith("{")]


def logged(replica: Replica, **fields: object) -> list[dict[str, Any]]:
    """The lines of a replica's log that have these fields."""
    found = [json.loads(line) for line in log_lines(replica.log)]
    return [line for line in found if line.items() >= fields.items()]


def server_of(fleet: Fleet, request_id: str) -> int:
    """The index of the replica that answered a request."""

    def index() -> int | None:
        for number, replica in enumerate(fleet.replicas):
            if logged(replica, request_id=request_id):
                return number
        return None

    return until(index)


@pytest.fixture
def client(fleet: Fleet) -> Iterator[httpx.Client]:
    """A client of the proxy."""
    with client_of(fleet.url) as found:
        yield found


def placed(fleet: Fleet, client: httpx.Client, body: Any, name: str, **headers: str) -> int:
    """Ask one question, and return the index of the replica that answered it.

    Args:
        fleet: The fleet.
        client: A client of its proxy.
        body: The body as JSON holds it, or its bytes.
        name: Id of the request.
        headers: Further headers, with `_` for `-`.
    """
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    own = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {"Content-Type": "application/json", "X-Request-ID": name, **own}
    assert client.post(UPDATES, content=content, headers=sent).status_code == 200
    return server_of(fleet, name)


def test_configuration_is_valid_without_warnings(haproxy_binary: str) -> None:
    """HAProxy accepts the configuration without a warning, and refuses a misspelt option."""

    def check(text: str) -> subprocess.CompletedProcess[str]:
        command = [haproxy_binary, "-dW", "-c", "-f", "/dev/stdin"]
        text = text.replace("default-path config", f"default-path origin {CONFIG.parent}")
        variables = {**os.environ, "FRONT_REPLICAS": "replicas:8000"}
        return subprocess.run(
            command, input=text, env=variables, capture_output=True, text=True, check=False
        )

    found = check(CONFIG.read_text())
    assert found.returncode == 0, found.stderr
    assert "WARNING" not in found.stderr
    assert check(CONFIG.read_text().replace("abortonclose", "abortonclosed")).returncode != 0


def test_context_goes_to_one_replica_by_header_and_by_body(
    fleet: Fleet, client: httpx.Client
) -> None:
    """Questions about one context reach one replica, and both replicas get contexts.

    HAProxy uses the header. If it is missing or invalid, HAProxy uses the body, whose context may
    be ids, text, or text with escapes.
    """
    used = Counter[int]()
    for number in range(8):
        ids = token_ids(30, number)
        text = f'line "{number}"\nnext'
        escaped = json.dumps({"query": [3], "context": f"é中{number}"}).encode()
        assert b"\\u" in escaped
        variants: dict[str, tuple[Any, dict[str, str]]] = {
            "header": ({"context": ids, "query": [3]}, affinity({"context": ids})),
            "ids": ({"query": [3], "context": ids}, {}),
            "text": ({"context": text, "query": [3]}, {}),
            "escaped": (escaped, {}),
            "invalid": ({"context": text, "query": [4]}, {CONTEXT_HEADER: "x"}),
        }
        for kind, (body, headers) in variants.items():
            places = {
                placed(fleet, client, body, f"{kind}-{number}-{i}", **headers) for i in range(2)
            }
            assert len(places) == 1, kind
            used.update(places)
    assert set(used) == {0, 1}


def test_hot_context_spills(fleet: Fleet, client: httpx.Client) -> None:
    """Both replicas answer requests about a context that has 24 of them in progress. As a control,
    one replica answers all if four are in progress."""
    for number, (clients, expected) in enumerate(((4, 1), (24, 2))):
        context = token_ids(40, f"hot-{number}")

        def ask(index: int, context: list[int] = context, number: int = number) -> int:
            body = {"context": context, "query": [1 + index]}
            name = f"hot-{number}-{index}"
            with client_of(fleet.url) as own:
                answer = own.post(UPDATES, json=body, headers={"X-Request-ID": name})
            assert answer.status_code == 200
            return server_of(fleet, name)

        with ThreadPoolExecutor(clients) as pool:
            assert len(set(pool.map(ask, range(4 * clients)))) == expected


def test_lines_and_gets_are_spread(fleet: Fleet, client: httpx.Client) -> None:
    """NDJSON and GET requests reach both replicas."""
    lines, gets = set(), set()
    for number in range(8):
        line = json.dumps(BODY).encode()
        named = {"X-Request-ID": f"line-{number}"}
        assert client.post(UPDATES, content=line, headers=NDJSON | named).status_code == 200
        lines.add(server_of(fleet, f"line-{number}"))
        assert client.get("/v1/model", headers={"X-Request-ID": f"get-{number}"}).is_success
        gets.add(server_of(fleet, f"get-{number}"))
    assert lines == gets == {0, 1}


def test_lines_pass_both_ways_while_they_arrive(client: httpx.Client) -> None:
    """A caller gets the answer to its first line before it sends the next one."""
    answered: list[bytes] = []
    sent: list[int] = []

    def lines() -> Iterator[bytes]:
        for number in range(3):
            until(lambda number=number: len(answered) == number or None)  # type: ignore[misc]
            sent.append(number)
            yield json.dumps({**BODY, "query": [1 + number]}).encode() + b"\n"

    # httpx reads no answer while it sends a body, so the test writes HTTP to a socket.
    url = httpx.URL(str(client.base_url))
    with socket.create_connection((url.host, url.port or 80), timeout=60) as wire:
        head = f"POST {UPDATES} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        wire.sendall(f"{head}Content-Type: application/x-ndjson\r\n\r\n".encode())
        received = b""
        for line in lines():
            wire.sendall(b"%x\r\n%b\r\n" % (len(line), line))
            while received.count(b'"index"') <= len(answered):
                piece = wire.recv(65536)
                assert piece, received
                received += piece
            answered.append(received)
        wire.sendall(b"0\r\n\r\n")
    assert sent == [0, 1, 2]
    assert b" 200 OK" in received


def test_events_pass_while_they_are_generated(client: httpx.Client) -> None:
    """The first event of a stream arrives while most of its tokens are not yet generated."""
    body = {"prompt": [5, 6, 7], "max_tokens": 30, "temperature": 0, "stream": True}
    times = []
    with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for _ in answer.iter_raw():
            times.append(time.monotonic())
    # A token takes 0.05 s, so a stream that HAProxy buffered would arrive in one piece.
    assert len(times) >= 15


def test_client_that_leaves_frees_the_replica(fleet: Fleet) -> None:
    """If a caller leaves, the replica logs 499 and stops the work early."""
    name = "left.1"
    body = {"prompt": [5, 6, 7], "max_tokens": 500, "temperature": 0}
    with client_of(fleet.url) as own, pytest.raises(httpx.ReadTimeout):
        own.post("/v1/completions", json=body, headers={"X-Request-ID": name}, timeout=1.0)
    found = fleet.replicas[server_of(fleet, name)]
    assert logged(found, request_id=name)[0]["status"] == 499


def test_client_that_half_closes_is_answered_400(client: httpx.Client) -> None:
    """If a caller closes its side of the connection after a request, HAProxy answers 400, because
    it takes the caller for one that has left."""
    url = httpx.URL(str(client.base_url))
    body = json.dumps({"prompt": [5, 6, 7], "max_tokens": 200, "temperature": 0}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    with socket.create_connection((url.host, url.port or 80), timeout=60) as wire:
        wire.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + body)
        wire.shutdown(socket.SHUT_WR)
        assert wire.recv(65536).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("size", "headers", "limit"),
    [(MiB + 1, {"Content-Type": "application/json"}, MiB), (4 * MiB + 1, NDJSON, 4 * MiB)],
)
def test_body_over_the_limit_is_refused_at_the_front(
    fleet: Fleet, client: httpx.Client, size: int, headers: dict[str, str], limit: int
) -> None:
    """HAProxy refuses a longer body with `body_too_large` and its limit; no replica sees it."""
    named = {**headers, "X-Request-ID": f"large.{size}"}
    found = problem(client.post(UPDATES, content=b" " * size, headers=named), "body_too_large")
    assert (found.limit, found.actual) == (limit, size)
    assert found.request_id == f"large.{size}"
    assert not any(logged(one, request_id=f"large.{size}") for one in fleet.replicas)


def test_lines_longer_than_a_body_pass(client: httpx.Client) -> None:
    """NDJSON of 2 MiB passes the proxy."""
    line = json.dumps(BODY).encode() + b" " * 100_000 + b"\n"
    answer = client.post(UPDATES, content=line * 21, headers=NDJSON)
    assert answer.text.count('"status":200') == 21


def test_metrics_are_not_served_at_the_front(fleet: Fleet, client: httpx.Client) -> None:
    """`/metrics` at the front is `not_found`, also below the prefix and with percent-encoded
    characters. Replicas and proxy serve their own metrics."""
    for path in ("/metrics", "/%6detrics", f"{ROOT_PATH}/metrics", f"{ROOT_PATH}/metric%73"):
        problem(client.get(path), "not_found")
        assert httpx.get(f"{fleet.replicas[0].url}{path}").is_success
    assert httpx.get(f"{fleet.operations}/metrics").is_success
    assert httpx.get(f"{fleet.operations}/livez").is_success


@pytest.mark.parametrize(
    "values", [["good", 'ev"il'], ['good, ev"il'], ['ev"il', "good"], ["x" * 129], []]
)
def test_requests_have_one_id_without_escapes(
    fleet: Fleet, client: httpx.Client, values: list[str]
) -> None:
    """The answer, the problem and the log of the proxy have one valid id, whatever the caller
    sends as ids."""
    answer = client.get("/metrics", headers=[("X-Request-ID", value) for value in values])
    (name,) = answer.headers.get_list("x-request-id")
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", name)
    assert problem(answer, "not_found").request_id == name

    def logs() -> list[str] | None:
        lines = log_lines(fleet.front_log)
        return lines if any(f'"{name}"' in line for line in lines) else None

    assert all(json.loads(line) for line in until(logs))


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", 408, "request_timeout"),
    ],
)
def test_heads_that_are_malformed_or_late_are_refused(
    haproxy_binary: str, client: httpx.Client, sent: bytes, status: int, code: str
) -> None:
    """HAProxy refuses a head that is not HTTP, or that does not end within 10 s, and closes the
    connection. Its answer is a problem from version 3.2 on, before that its own page."""
    url = httpx.URL(str(client.base_url))
    with socket.create_connection((url.host, url.port or 80), timeout=60) as wire:
        wire.sendall(sent)
        received = b""
        while piece := wire.recv(65536):
            received += piece
    top, _, body = received.partition(b"\r\n\r\n")
    head = top.lower()
    assert head.startswith(b"http/1.1 %d " % status)
    assert b"\r\nconnection: close" in head
    assert b"\r\ncache-control: no-" in head
    said_version = subprocess.run(
        [haproxy_binary, "-v"], capture_output=True, text=True, check=True
    )
    version = re.search(r"version (\d+)\.(\d+)", said_version.stdout)
    assert version is not None
    if (int(version[1]), int(version[2])) < (3, 2):
        assert b"content-type: text/html" in head
        return
    assert b"content-type: application/problem+json" in head
    said = json.loads(body)
    assert (said["status"], said["code"], said["type"]) == (status, code, f"/problems/{code}")


def test_adapter_of_one_replica_is_served_by_the_other(fleet: Fleet, client: httpx.Client) -> None:
    """Each replica finds an adapter in the shared folder, whichever replica made it."""
    made = client.post("/v1/adapters", json=ADAPTER)
    assert made.status_code == 200, made.text
    for replica in fleet.replicas:
        answer = httpx.get(f"{replica.url}/v1/adapters/{made.json()['id']}")
        assert answer.json()["id"] == made.json()["id"]


def test_log_of_the_proxy_holds_no_prompt(fleet: Fleet, client: httpx.Client) -> None:
    """HAProxy logs the id, the status and the replica of a request as JSON, and nothing of its
    body, query string or unknown path."""
    body = {"context": CANARY, "query": "a"}
    sent = {"X-Request-ID": "logged.1"}
    assert client.post(UPDATES, json=body, headers=sent).is_success
    client.get(f"/{CANARY}?{CANARY}", headers={"X-Request-ID": "logged.2"})

    def line(name: str) -> dict[str, Any] | None:
        lines = log_lines(fleet.front_log)
        return next((json.loads(one) for one in lines if f'"{name}"' in one), None)

    first, second = (until(lambda name=name: line(name)) for name in ("logged.1", "logged.2"))  # type: ignore[misc]
    assert first["status"] == 200
    assert first["replica"].startswith("replica")
    assert second["status"] == 404
    assert CANARY not in fleet.front_log.read_text()


CONTEXTS = 16
CACHE_BYTES = 56_000_000
"""Prefix cache of a replica: eleven of these contexts on the bundled model."""


def spreading(folder: Path) -> Path:
    """Write the configuration without affinity, which is the control."""
    lines = CONFIG.read_text().replace("balance hash var(txn.context)", "balance roundrobin")
    lines = lines.replace("default-path config", f"default-path origin {CONFIG.parent}")
    kept = [line for line in lines.splitlines() if "hash-type" not in line]
    kept = [line for line in kept if "hash-key" not in line]
    config = folder / "spreading.cfg"
    config.write_text("\n".join(kept) + "\n")
    return config


def test_affinity_finds_rows_in_the_cache(haproxy_binary: str, tmp_path: Path) -> None:
    """At least 90 % of the rows are cached with affinity, by the header or by the body alone. As a
    control, at most 75 % are without affinity."""
    shares: dict[str, float] = {}
    options: dict[str, Any] = {"model": "bundled", "threads": 1, "prefix_cache_bytes": CACHE_BYTES}
    with haproxy_fleet(binary=haproxy_binary, **options) as running:
        shares["header"] = hits(running.url, header=True, seed=1, contexts=CONTEXTS)
        shares["body"] = hits(running.url, header=False, seed=2, contexts=CONTEXTS)
    with haproxy_fleet(binary=haproxy_binary, config=spreading(tmp_path), **options) as running:
        shares["spread"] = hits(running.url, header=True, seed=1, contexts=CONTEXTS)
    print(shares)
    assert shares["header"] >= 0.9
    assert shares["body"] >= 0.9
    assert shares["spread"] <= 0.75
