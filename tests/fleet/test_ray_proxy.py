"""`deploy/ray/haproxy`, which hardens the configuration that Ray Serve generates."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from collections.abc import Iterator
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
    server gone 127.0.0.1:1
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
    text = GENERATED.format(folder="/tmp", port=1, metrics=2, stats=3)
    once = program["rewritten"](text)
    assert re.findall("bind (.*)", once) == ["127.0.0.1:2", "127.0.0.1:1", "127.0.0.1:3"]
    assert "stats socket /tmp/admin.sock mode 600 level admin" in once
    assert "500.http" not in once
    assert "timeout http-request 10s" in once
    assert "retry-on conn-failure empty-response\n" in once
    assert "tune.bufsize 65536\n" in once
    assert program["rewritten"](once) == once


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a real HAProxy whose only front does not run."""
    python = interpreter()
    if python is None:
        pytest.skip("no Ray: `make test-slow` installs it")
    folder: Path = tmp_path_factory.mktemp("haproxy")
    port, metrics, stats = free_port(), free_port(), free_port()
    file = folder / "haproxy.cfg"
    file.write_text(GENERATED.format(folder=folder, port=port, metrics=metrics, stats=stats))
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
