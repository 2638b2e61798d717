"""`deploy/ray/haproxy`, which hardens the configuration that Ray Serve generates."""

from __future__ import annotations

import json
import re
import runpy
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.cluster.environment import ROOT, interpreter
from schemas.problems import PROBLEMS
from tests.api.wire import until
from tests.service_process import free_port

pytestmark = pytest.mark.slow
PROGRAM = ROOT / "deploy/ray/haproxy"
GENERATED = """
global
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
    maxconn 100
    tune.bufsize 16384
defaults
    mode http
    timeout connect 5s
    timeout client 3600s
    timeout server 5s
    option redispatch 1
    retry-on conn-failure
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
frontend prometheus
    bind :{metrics}
    mode http
frontend http_frontend
    bind 127.0.0.1:{port}
    acl is_app path_beg /app
    use_backend app if is_app
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
backend app
    server one 127.0.0.1:{one}
    server other 127.0.0.1:{other}
listen stats
  bind *:{stats}
  stats enable
"""
"""A configuration with those parts of Ray's that the program rewrites."""


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    """The global names of the program."""
    return runpy.run_path(str(PROGRAM))


def written(text: str) -> dict[str, Any]:
    """Return the problem in a line of HAProxy's configuration."""
    found = re.search("lf-string '(.*?)'", text)
    assert found is not None
    fields: dict[str, Any] = json.loads(found[1])
    return fields


def test_proxy_problems_match_the_table_of_problems(program: dict[str, Any]) -> None:
    """Each problem of the proxy has the status, the title and `retryable` of its code."""
    problems = [*program["ERRORS"].items(), (503, program["LOADING"])]
    for status, (code, detail) in problems:
        said = written(program["answer"](status, code, detail))
        kind = PROBLEMS[code]
        assert (said["status"], said["title"]) == (kind.status, kind.title)
        assert said["retryable"] == kind.retryable


def test_configuration_is_hardened_once(program: dict[str, Any]) -> None:
    """HAProxy's pages are local, only its user can open its admin socket, and a second run changes
    nothing."""
    text = GENERATED.format(folder="/tmp", port=1, metrics=2, stats=3, one=4, other=5)
    once = program["rewritten"](text)
    assert re.findall("bind (.*)", once) == ["127.0.0.1:2", "127.0.0.1:1", "127.0.0.1:3"]
    assert "stats socket /tmp/admin.sock mode 600 level admin" in once
    assert "500.http" not in once
    assert "timeout http-request 10s" in once
    assert "retry-on conn-failure empty-response\n" in once
    assert "tune.bufsize 65536\n" in once
    assert program["rewritten"](once) == once


@contextmanager
def running_proxy(
    folder: Path, one: int = 1, other: int = 1, patience: str = "30s"
) -> Iterator[httpx.Client]:
    """Run HAProxy with the hardened configuration. Yield a client of it.

    Args:
        folder: Folder of its files.
        one: Port of a front.
        other: Port of another front.
        patience: Time for the body of a request to arrive.
    """
    python = interpreter()
    if python is None:
        pytest.skip("no Ray: `make test-slow` installs it")
    port, metrics, stats = free_port(), free_port(), free_port()
    file = folder / "haproxy.cfg"
    text = GENERATED.format(
        folder=folder, port=port, metrics=metrics, stats=stats, one=one, other=other
    )
    if patience != "30s":
        text = runpy.run_path(str(PROGRAM))["rewritten"](text)
        assert "wait-for-body time 30s" in text
        text = text.replace("wait-for-body time 30s", f"wait-for-body time {patience}")
    file.write_text(text)
    process = subprocess.Popen([python, PROGRAM, "-db", "-f", file])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:

            def answers() -> bool | None:
                try:
                    return bool(client.get("/")) or True
                except httpx.TransportError:
                    return None

            until(answers)
            yield client
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a real HAProxy whose fronts do not run."""
    with running_proxy(tmp_path_factory.mktemp("haproxy")) as client:
        yield client


@contextmanager
def front(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Run a server that reads a request, sends `answer` and closes the connection. If `answer` is
    empty, it closes the connection after the head.

    Yields:
        Its port, and the heads and bodies of the requests so far.
    """
    asked: list[bytes] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = b""
            while (line := self.rfile.readline()) not in (b"", b"\r\n"):
                head += line
            asked.append(head)
            if answer and (size := re.search(rb"(?i)content-length: (\d+)", head)):
                asked[-1] += self.rfile.read(int(size[1]))
            self.wfile.write(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        try:
            yield server.server_address[1], asked
        finally:
            server.shutdown()


@pytest.mark.parametrize(("path", "code"), [("/app/livez", "draining"), ("/", "loading")])
@pytest.mark.parametrize(("offered", "echoed"), [("good.1", True), ("two words", False)])
def test_proxy_answers_with_a_problem_that_has_one_valid_id(
    proxy: httpx.Client, path: str, code: str, offered: str, echoed: bool
) -> None:
    """If there is no front or no application, HAProxy answers with a problem and one valid id."""
    answer = proxy.get(path, headers={"X-Request-ID": offered})
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    (name,) = answer.headers.get_list("x-request-id")
    assert answer.json()["code"] == code
    assert answer.json()["request_id"] == name
    assert (name == offered) is echoed


RIGHT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
BODY = b'{"context":"a"}'


def halves(pause: float = 0.05) -> Iterator[bytes]:
    """Yield the halves of a body, each after a pause in seconds. So the body comes after the head,
    as many HTTP clients send it."""
    for half in (BODY[:7], BODY[7:]):
        time.sleep(pause)
        yield half


@pytest.mark.parametrize(
    "path", ["/app/v1/weight-updates", "/app/v1/adapters", "/app/v1/%61dapters"]
)
def test_question_whose_front_closes_the_connection_is_sent_to_another(
    tmp_path: Path, path: str
) -> None:
    """HAProxy can repeat a request only if it has all of it. It does not repeat the write of an
    adapter, which the front may have carried out."""
    headers = {"Content-Type": "application/json", "Content-Length": str(len(BODY))}
    with (
        front(b"") as (broken, refused),
        front(RIGHT) as (whole, answered),
        running_proxy(tmp_path, broken, whole) as client,
    ):
        answers = [client.post(path, content=halves(), headers=headers) for _ in range(4)]
    lost = [answer.json()["code"] for answer in answers if answer.status_code != 200]
    assert len(answered) + len(lost) == len(answers)
    assert all(asked.endswith(BODY) for asked in answered)
    assert refused
    if path.endswith("dapters"):
        assert lost == ["replica_lost"] * len(refused)
    else:
        assert not lost


def test_late_body_is_refused_with_a_problem(tmp_path: Path) -> None:
    """A body that does not arrive gets 408 with the request's id, and reaches no front."""
    with front(RIGHT) as (port, asked), running_proxy(tmp_path, port, port, "200ms") as client:
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=10) as caller:
            caller.sendall(b"POST /app/v1 HTTP/1.1\r\nHost: a\r\nX-Request-ID: late.1\r\n")
            caller.sendall(b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
            head, _, body = b"".join(iter(lambda: caller.recv(4096), b"")).partition(b"\r\n\r\n")
        assert not asked
    assert head.startswith(b"HTTP/1.1 408 ")
    said = json.loads(body)
    assert (said["code"], said["request_id"]) == ("request_timeout", "late.1")


def test_lines_may_arrive_slowly(tmp_path: Path) -> None:
    """HAProxy does not wait for the body of NDJSON, whose lines may arrive over minutes."""
    headers = {"Content-Type": "Application/X-NDJSON; charset=utf-8"}
    headers["Content-Length"] = str(len(BODY))
    with front(RIGHT) as (port, asked), running_proxy(tmp_path, port, port, "200ms") as client:
        answer = client.post("/app/v1", content=halves(0.4), headers=headers)
    assert answer.status_code == 200
    assert asked[0].endswith(BODY)


def test_proxy_asks_for_an_announced_body_itself(tmp_path: Path) -> None:
    """HAProxy answers `Expect: 100-continue`, and the front gets the request with its body."""
    with front(RIGHT) as (port, asked), running_proxy(tmp_path, port, port) as client:
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=10) as caller:
            caller.sendall(b"POST /app/v1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n")
            caller.sendall(b"Content-Length: 15\r\nExpect: 100-continue\r\n\r\n")
            assert caller.recv(4096).startswith(b"HTTP/1.1 100 ")
            assert not asked
            caller.sendall(BODY)
            answer = b"".join(iter(lambda: caller.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert asked[0].endswith(BODY)
    assert b"expect" not in asked[0].lower()
