"""Around every answer: request ids, headers, timings, metrics and log lines."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx
import pytest

from tests.api.conftest import Heard
from tests.api.test_bodies import PATHS
from tests.api.wire import CANARY, metric, problem

BODIES: dict[str, dict[str, Any]] = {
    "updates": {"context": f"abc {CANARY}", "query": f" {CANARY}"},
    "checks": {"context": f"abc {CANARY}", "query": f" {CANARY}"},
    "trajectories": {"context": f"abc {CANARY}", "query": f" {CANARY}"},
    "attributions": {"context": f"abc. {CANARY}", "query": f" {CANARY}"},
    "activations": {"prompts": [CANARY]},
    "tokenize": {"context": CANARY, "query": CANARY},
}
TIMINGS = ("queue", "tokenize", "forward", "compute", "serialize")
REQUESTS = "deltaw_http_requests_total"


@pytest.mark.parametrize("offered", ["a", "A-Z_0.9-b", "x" * 128, "00", "..-_"])
def test_valid_request_id_is_returned(tiny_client: httpx.Client, offered: str) -> None:
    """A request id of 1 to 128 allowed characters is returned in answers and problems."""
    for body in (BODIES["updates"], {}):
        response = tiny_client.post(PATHS["updates"], json=body, headers={"X-Request-ID": offered})
        assert response.headers["x-request-id"] == offered
    assert problem(response, "validation", {}).request_id == offered


@pytest.mark.parametrize("offered", ["", "x" * 129, "a b", "a/b", "é", 'a"b', "a:b"])
def test_invalid_request_id_is_replaced(tiny_client: httpx.Client, offered: str) -> None:
    """Any other request id is replaced by a new one."""
    made = set()
    for _ in range(2):
        response = tiny_client.get("/livez", headers=[(b"X-Request-ID", offered.encode())])
        made.add(response.headers["x-request-id"])
    assert offered not in made
    assert len(made) == 2
    assert all(re.fullmatch("[A-Za-z0-9._-]{1,128}", one) for one in made)


@pytest.mark.parametrize("resource", BODIES)
def test_answers_have_model_headers_and_timings(tiny_client: httpx.Client, resource: str) -> None:
    """Every answer names its model, forbids caching and sniffing, and has `Server-Timing`."""
    start = time.perf_counter()
    response = tiny_client.post(PATHS[resource], json=BODIES[resource])
    elapsed = 1000 * (time.perf_counter() - start)
    assert response.status_code == 200
    assert set(response.json()["model"]) == {
        "id",
        "revision",
        "weights_digest",
        "dtype",
        "device",
        "attention",
    }
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    entries = [part.strip() for part in response.headers["server-timing"].split(",")]
    known = [
        part for part in entries if re.fullmatch(r'prefix;desc="\d+ of \d+ rows cached"', part)
    ]
    assert len(known) == (resource != "tokenize")
    parts = [part.split(";dur=") for part in entries if part not in known]
    timings = {name: float(milliseconds) for name, milliseconds in parts}
    assert tuple(timings) == TIMINGS
    assert min(timings.values()) >= 0.0
    assert sum(timings.values()) <= elapsed
    assert timings["tokenize"] > 0.0
    assert timings["serialize"] > 0.0
    computed = resource != "tokenize"
    assert (timings["forward"] > 0.0) == computed
    assert (timings["compute"] > 0.0) == computed


def test_model_answer_has_timings(tiny_client: httpx.Client) -> None:
    """`/v1/model` has the same headers as the other answers."""
    response = tiny_client.get("/v1/model")
    assert response.headers["cache-control"] == "no-store"
    assert "serialize;dur=" in response.headers["server-timing"]


@pytest.mark.parametrize("path", ["/livez", "/docs", "/openapi.json", "/nope", "/metrics"])
def test_every_path_has_nosniff_and_request_id(tiny_client: httpx.Client, path: str) -> None:
    """Every path has `X-Content-Type-Options: nosniff` and a request id."""
    response = tiny_client.get(path)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-request-id"]


def test_metrics_have_the_documented_names(tiny_client: httpx.Client) -> None:
    """The metrics have the documented names, types, labels and buckets."""
    tiny_client.post(PATHS["checks"], json=BODIES["checks"])
    response = tiny_client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", response.text, re.MULTILINE))
    assert {
        "deltaw_http_requests_total": "counter",
        "deltaw_http_request_duration_seconds": "histogram",
        "deltaw_queue_depth": "gauge",
        "deltaw_queue_wait_seconds": "histogram",
        "deltaw_forward_seconds": "histogram",
        "deltaw_batch_size": "histogram",
        "deltaw_rejected_total": "counter",
        "deltaw_input_tokens": "histogram",
        "deltaw_response_bytes": "histogram",
        "deltaw_equivalence_relative_error": "histogram",
        "deltaw_equivalence_failures_total": "counter",
        "deltaw_build_info": "gauge",
    }.items() <= types.items()
    (build,) = re.findall(r"^deltaw_build_info\{(.*)\} 1\.0$", response.text, re.MULTILINE)
    assert set(re.findall(r'(\w+)="', build)) == {
        "version",
        "model",
        "revision",
        "device",
        "dtype",
    }
    edges = re.findall(r'equivalence_relative_error_bucket\{le="(.*?)"\}', response.text)
    assert float(edges[0]) == 1e-9
    assert float(edges[-2]) == 1.0


def test_refused_request_is_counted_by_route_and_reason(tiny_client: httpx.Client) -> None:
    """A refused request adds one to its route's count and one to its reason's."""
    route = f'{REQUESTS}{{method="POST",route="/v1/weight-updates",status="422"}}'
    reason = 'deltaw_rejected_total{reason="empty_context"}'
    before = metric(tiny_client, route), metric(tiny_client, reason)
    tiny_client.post(PATHS["updates"], json={"context": "", "query": "b"})
    after = metric(tiny_client, route), metric(tiny_client, reason)
    assert after == (before[0] + 1, before[1] + 1)


def test_each_equivalence_check_is_counted(tiny_client: httpx.Client) -> None:
    """Each check, those of the logits included, adds its error to the histogram and its failure to
    the counter."""
    samples = ("deltaw_equivalence_relative_error_count", "deltaw_equivalence_failures_total")
    before = [metric(tiny_client, sample) for sample in samples]
    body = BODIES["checks"] | {"scope": "model", "tolerance": 1e-30}
    answer = tiny_client.post(PATHS["checks"], json=body).json()
    checks = [*answer["checks"], *answer["logits"]]
    failed = [check for check in checks if check["verdict"] == "fails"]
    assert failed[-1] in answer["logits"]
    after = [metric(tiny_client, sample) for sample in samples]
    assert after == [before[0] + len(checks), before[1] + len(failed)]


def test_metric_labels_are_route_templates(tiny_client: httpx.Client) -> None:
    """Labels hold route templates, and paths that match none share one label."""
    sample = f'{REQUESTS}{{method="any",route="unmatched",status="404"}}'
    before = metric(tiny_client, sample)
    for path in (f"/{CANARY}", f"/v1/{CANARY}/x", f"/problems/{CANARY}"):
        assert tiny_client.get(path).status_code == 404
    assert tiny_client.delete(f"/{CANARY}").status_code == 404
    assert metric(tiny_client, sample) == before + 3
    text = tiny_client.get("/metrics").text
    assert CANARY not in text
    assert 'route="/problems/{code}"' in text


def test_request_has_one_log_line(tiny_heard: Heard) -> None:
    """Each request has one JSON log line with method, route, status, rows and durations."""
    headers = {"X-Request-ID": "logged.1"}
    body = {"context": [1, 2, 3], "query": [4]}
    tiny_heard.client.post(PATHS["updates"], json=body, headers=headers)
    line = tiny_heard.log.await_request("logged.1")
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/weight-updates", 200)
    assert line["rows"] == 5
    assert line["duration_ms"] > 0
    assert set(line["timings_ms"]) == set(TIMINGS)
    assert tiny_heard.log.text.count('"logged.1"') == 1


def test_refused_request_is_logged_with_its_code(tiny_heard: Heard) -> None:
    """The log line of a refused request has the problem's code."""
    headers = {"X-Request-ID": "logged.2"}
    tiny_heard.client.post(PATHS["updates"], json={}, headers=headers)
    line = tiny_heard.log.await_request("logged.2")
    assert (line["status"], line["problem"]) == (422, "validation")


@pytest.mark.parametrize("resource", BODIES)
@pytest.mark.parametrize("wrong", [{}, {"layers": CANARY}, {CANARY: CANARY}])
def test_prompts_are_not_logged(tiny_heard: Heard, resource: str, wrong: dict[str, Any]) -> None:
    """No prompt, invalid value or query string is logged, for answers or problems."""
    mark = f"quiet.{resource}.{len(str(wrong))}"
    tiny_heard.client.post(
        PATHS[resource],
        json=BODIES[resource] | wrong,
        params={"q": CANARY},
        headers={"X-Request-ID": mark},
    )
    tiny_heard.log.await_request(mark)
    assert CANARY not in tiny_heard.log.text


def test_documentation_loads_nothing_from_elsewhere(tiny_client: httpx.Client) -> None:
    """Every part of the documentation page is served by the service itself."""
    page = tiny_client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"https?:|[\"'(]//", page.text)
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(parts) >= 2
    for part in parts:
        assert tiny_client.get(part).status_code == 200, part


def test_ready_service_passes_all_probes(tiny_client: httpx.Client) -> None:
    """A ready service returns 200 for `/livez`, `/readyz` and `/health`."""
    for path in ("/livez", "/readyz", "/health"):
        assert tiny_client.get(path).status_code == 200
