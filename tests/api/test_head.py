"""HEAD: the status and the headers of GET, without a body."""

from __future__ import annotations

import httpx
import pytest

from tests.api.conftest import Heard
from tests.api.test_bodies import PATHS
from tests.api.wire import metric, problem
from tests.hostile import raw
from tests.service_process import Served

READABLE = (
    "/livez",
    "/readyz",
    "/health",
    "/metrics",
    "/v1/model",
    "/docs",
    "/docs/start.js",
    "/docs/assets/swagger-ui.css",
    "/openapi.json",
    "/problems/loading",
    "/",
    "/web/js/main.js",
)


@pytest.mark.parametrize("path", READABLE)
def test_head_returns_the_headers_of_get(tiny_client: httpx.Client, path: str) -> None:
    """HEAD has the status and the content headers of GET."""
    head, get = tiny_client.head(path), tiny_client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["x-content-type-options"] == "nosniff"
    if path not in ("/metrics", "/v1/model"):  # their length may change between two requests
        assert head.headers["content-length"] == str(len(get.content))


def test_head_sends_no_body(tiny_service: Served) -> None:
    """Nothing comes between the head of the answer and the next answer on the connection."""
    sent = raw.get("/livez", method="HEAD") + raw.get("/nope", method="HEAD")
    with raw.connected(tiny_service) as client:
        client.sendall(sent + raw.get("/livez", "Connection: close"))
        received = raw.until_closed(client)
    first, second, third, body = received.split(b"\r\n\r\n")
    assert [part.split()[1] for part in (first, second, third)] == [b"200", b"404", b"200"]
    assert body == b'{"status":"live"}'


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", READABLE)
def test_other_methods_return_405_with_allow(
    tiny_client: httpx.Client, path: str, method: str
) -> None:
    """A path that answers GET allows exactly GET and HEAD."""
    answer = tiny_client.request(method, path)
    problem(answer, "method_not_allowed")
    assert {part.strip() for part in answer.headers["allow"].split(",")} == {"GET", "HEAD"}


@pytest.mark.parametrize("path", PATHS.values())
def test_head_of_a_post_returns_405(tiny_client: httpx.Client, path: str) -> None:
    """A path that answers POST alone allows no HEAD."""
    answer = tiny_client.head(path)
    assert (answer.status_code, answer.content) == (405, b"")
    assert answer.headers["allow"] == "POST"


def test_head_needs_a_key_like_get(narrow: Heard) -> None:
    """HEAD is authenticated where GET is."""
    for path, status in (("/livez", 200), ("/metrics", 401), ("/v1/model", 401)):
        assert httpx.head(narrow.served.url + path).status_code == status
    assert narrow.client.head("/v1/model").status_code == 200


def test_head_is_logged_as_head(tiny_heard: Heard) -> None:
    """Metrics and the log tell HEAD from GET, on the same route."""
    counted = 'deltaw_http_requests_total{method="HEAD",route="/readyz",status="200"}'
    before = metric(tiny_heard.client, counted)
    answer = tiny_heard.client.head("/readyz")
    line = tiny_heard.log.await_request(answer.headers["x-request-id"])
    assert (line["method"], line["route"], line["status"]) == ("HEAD", "/readyz", 200)
    assert metric(tiny_heard.client, counted) == before + 1
