"""The contract under Ray Serve: the HTTP tests of `tests/api` pass, and answers are the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from benchmarks.cluster.environment import ROOT, interpreter
from tests.api.test_bodies import PATHS
from tests.api.wire import SAFETENSORS, client_of
from tests.fleet.served import served_by_ray
from tests.service_process import SERVER, Served, served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(interpreter() is None, reason="no Ray: `make test-slow` installs it"),
]
OWN_PROCESS = "The test inspects the server's process. Under Ray, replicas have other processes."
HEADS = "HAProxy parses the head, refuses some requests itself, and closes connections itself."
NOT_UNDER_RAY = {
    "test_exchange.py::test_disconnect_while_sending_is_logged_as_499": "The front receives the "
    "body, so no replica learns of a client that leaves while it sends.",
    "test_failures.py::test_lack_of_memory_fails_only_the_request": OWN_PROCESS,
    "test_failures.py::test_no_thread_starts_while_requests_arrive": OWN_PROCESS,
    "test_headers.py::test_anything_but_one_valid_host_returns_400": HEADS,
    "test_headers.py::test_http_1_0_needs_no_host": HEADS,
    "test_prefix.py::test_announcement_names_the_prefix": "A replica prints no address.",
}
"""Tests of `tests/api` that do not apply under Ray Serve, with the reason."""
CONTROL = "test_request_log.py::test_metrics_have_the_documented_names"
"""A test of `tests/api` that fails under Ray Serve, because the front adds two labels."""
OWN = ("date", "server")
"""Headers that may differ, because the HTTP servers add them."""
PART = re.compile(
    rb'"(request_id|id|when|created|timings_ms)":("[^"]*"|\{[^}]*\}|[0-9]+)|cmpl-[0-9a-f]+'
)
"""Parts of an answer that differ each time: ids and times."""
LINES = {"Content-Type": "application/x-ndjson"}
UPDATE: dict[str, Any] = {"context": [1, 2, 3], "query": [4], "layers": [0]}


class Asked(NamedTuple):
    """A request for both servers."""

    method: str
    path: str
    body: Any = None
    headers: dict[str, str] = {}


REQUESTS = {
    "JSON": Asked("POST", PATHS["updates"], UPDATE),
    "safetensors": Asked("POST", PATHS["updates"], UPDATE, {"Accept": SAFETENSORS}),
    "NDJSON": Asked(
        "POST", PATHS["updates"], [UPDATE, {**UPDATE, "query": [5]}, {"bad": 1}], LINES
    ),
    "events": Asked(
        "POST", "/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 5, "seed": 1, "stream": True}
    ),
    "a mistake": Asked("POST", PATHS["updates"], {**UPDATE, "layers": [99]}),
    "no JSON": Asked("POST", PATHS["updates"], "{", {"Content-Type": "application/json"}),
    "a large body": Asked(
        "POST", PATHS["updates"], " " * 2_000_000, {"Content-Type": "application/json"}
    ),
    "another media type": Asked("POST", PATHS["updates"], "a", {"Content-Type": "text/plain"}),
    "no such path": Asked("GET", "/v1/nothing"),
    "no such method": Asked("PUT", PATHS["updates"]),
    "HEAD": Asked("HEAD", "/readyz"),
    "the model": Asked("GET", "/v1/model"),
    "the page": Asked("GET", "/"),
    "the document": Asked("GET", "/openapi.json"),
    "readiness": Asked("GET", "/readyz"),
    "a foreign host": Asked("GET", "/readyz", None, {"Host": "other.example"}),
}


@pytest.fixture(scope="module")
def plain(tiny_folder: Path) -> Iterator[httpx.Client]:
    """A client of `deltaw serve`."""
    with served(model=tiny_folder, threads=1) as running, client_of(running) as client:
        yield client


@pytest.fixture(scope="module")
def fleet(tiny_folder: Path) -> Iterator[Served]:
    """The same service under Ray Serve."""
    with served_by_ray({}, {"model": tiny_folder, "threads": 1}) as running:
        yield running


@pytest.fixture(scope="module")
def ray(fleet: Served) -> Iterator[httpx.Client]:
    """A client of the service under Ray Serve."""
    with client_of(fleet) as client:
        yield client


def ask(client: httpx.Client, asked: Asked, **headers: str) -> httpx.Response:
    """Send a request and return the answer."""
    content = asked.body
    sent = {**asked.headers, **headers}
    if isinstance(content, list):
        content = "".join(f"{json.dumps(line)}\n" for line in content)
    elif content is not None and not isinstance(content, str):
        content = json.dumps(content)
        sent = {"Content-Type": "application/json", **sent}
    return client.request(asked.method, asked.path, content=content, headers=sent)


@pytest.mark.parametrize("name", REQUESTS)
def test_answer_equals_that_of_deltaw_serve(
    plain: httpx.Client, ray: httpx.Client, name: str
) -> None:
    """Status, headers and bytes are equal, except for ids, times and the HTTP servers' headers."""
    found, expected = (
        ask(client, REQUESTS[name], **{"X-Request-ID": "same.1"}) for client in (ray, plain)
    )
    assert found.status_code == expected.status_code
    heads = [
        sorted(
            (key, re.sub("dur=[0-9.]+", "", value))
            for key, value in answer.headers.multi_items()
            if key not in (*OWN, "content-length")
        )
        for answer in (found, expected)
    ]
    assert heads[0] == heads[1]
    assert PART.sub(b"", found.content) == PART.sub(b"", expected.content)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/v1/nothing"])
@pytest.mark.parametrize(
    ("offered", "echoed"),
    [(b"good.1", True), (b"two words", False), (b"\xff\xfe", False), (None, False)],
)
def test_answer_has_one_valid_request_id(
    ray: httpx.Client, path: str, offered: bytes | None, echoed: bool
) -> None:
    """Each answer has exactly one `X-Request-ID`: the client's if it is valid, else a new one."""
    headers = [] if offered is None else [(b"X-Request-ID", offered)]
    answer = ray.get(path, headers=headers)
    (name,) = answer.headers.get_list("x-request-id")
    assert re.fullmatch("[A-Za-z0-9._-]{1,128}", name)
    assert (name.encode() == offered) is echoed


def test_metrics_name_the_replica_and_the_model(ray: httpx.Client) -> None:
    """Each sample has the labels `deployment` and `replica`, and no metric is declared twice."""
    text = ray.get("/metrics").text
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all('replica="' in line and 'deployment="' in line for line in samples)
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))


def test_unknown_model_returns_404(ray: httpx.Client) -> None:
    """The front refuses a name in `X-Deltaw-Model` that no model has."""
    answer = ray.get("/readyz", headers={"X-Deltaw-Model": "none"})
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")


def test_http_tests_of_the_contract_pass_under_ray() -> None:
    """The HTTP tests of `tests/api` pass under Ray Serve, except those in `NOT_UNDER_RAY`. Only the
    control fails, which shows that Ray Serve answers."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    for test in NOT_UNDER_RAY:
        command += ["--deselect", f"tests/api/{test}"]
    done = subprocess.run(
        [*command, "tests/api"],
        cwd=ROOT,
        env={**os.environ, SERVER: "ray"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    failed = re.findall("^(?:FAILED|ERROR) tests/api/(\\S+)", done.stdout, re.M)
    assert failed == [CONTROL], done.stdout[-20_000:]
