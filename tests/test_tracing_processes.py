"""Traces with real processes: a service, a collector of OTLP over HTTP, and a client."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deltaw_client import DeltawClient
from service import __version__
from tests.api.test_bodies import PATHS
from tests.api.wire import CANARY, client_of, log_of, until
from tests.collector import Collector, attribute, collecting
from tests.service_process import Served, free_port, served

pytestmark = pytest.mark.slow
KEY = f"key-{CANARY}"
PAIR = {"context": f"abc {CANARY}", "query": f" {CANARY}"}
STAGES = {"queue", "tokenize", "forward", "compute", "serialize"}


@dataclass(frozen=True)
class Exporting:
    """A service that exports to a collector.

    Args:
        collector: The collector.
        served: The service. It needs the key `KEY`.
    """

    collector: Collector
    served: Served


@pytest.fixture(scope="module")
def exporting(tiny_folder: Path) -> Iterator[Exporting]:
    """A service that exports its spans every 50 ms."""
    with collecting() as collector:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*",
        }
        with served(model=tiny_folder, api_keys=KEY, variables=variables) as running:
            yield Exporting(collector, running)


def post(running: Served, name: str, **sent: object) -> None:
    """Ask for updates with this request id."""
    with client_of(running, KEY) as client:
        headers = {"X-Request-ID": name}
        answer = client.post(PATHS["updates"], headers=headers, **sent)  # type: ignore[arg-type]
        assert answer.status_code in (200, 422)


def test_collector_receives_the_request_and_its_stages(exporting: Exporting) -> None:
    """The collector receives the request's span with five children, and the log names its trace."""
    post(exporting.served, "sent.1", json=PAIR)
    span = until(lambda: exporting.collector.find("sent.1"))
    assert set(exporting.collector.children(span)) == STAGES
    assert log_of(exporting.served).await_request("sent.1")["trace_id"] == span.trace_id.hex()
    resource = exporting.collector.resource
    assert (resource["service.name"], resource["service.version"]) == ("deltaw", __version__)
    assert resource["service.instance.id"]


def test_exported_bytes_hold_no_text_of_the_caller(exporting: Exporting) -> None:
    """The exported bytes contain the route, but no prompt, key, query string or unknown field."""
    post(exporting.served, "sent.2", json=PAIR, params={"q": CANARY})
    post(exporting.served, "sent.3", json={CANARY: CANARY})
    with client_of(exporting.served, f"{KEY}x") as client:
        assert client.post(PATHS["updates"], json=PAIR).status_code == 403
        assert client.get(f"/{CANARY}", headers={"X-Request-ID": "sent.4"}).status_code == 404
    until(lambda: exporting.collector.find("sent.4"))
    exported = b"".join(exporting.collector.received)
    assert CANARY.encode() not in exported
    assert PATHS["updates"].encode() in exported


def test_span_of_the_client_is_the_parent(exporting: Exporting) -> None:
    """If httpx is instrumented, the spans of client, service and stages are one trace."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    HTTPXClientInstrumentor().instrument(tracer_provider=provider)
    try:
        with DeltawClient(exporting.served.url, api_key=KEY) as client:
            client.weight_updates("abc", " cd")
    finally:
        HTTPXClientInstrumentor().uninstrument()
    sent = exporter.get_finished_spans()[-1]
    assert sent.context is not None
    parent = sent.context.span_id.to_bytes(8, "big")
    found = until(
        lambda: next((s for s in exporting.collector.spans if s.parent_span_id == parent), None)
    )
    assert int.from_bytes(found.trace_id, "big") == sent.context.trace_id
    assert attribute(found, "http.route") == PATHS["updates"]
    assert set(exporting.collector.children(found)) == STAGES


def test_probes_are_not_exported(exporting: Exporting) -> None:
    """Probes and scrapes export no spans; the request after them exports one."""
    with client_of(exporting.served, KEY) as client:
        for path in ("/livez", "/readyz", "/health", "/metrics"):
            assert client.get(path).status_code == 200
    post(exporting.served, "sent.5", json=PAIR)
    until(lambda: exporting.collector.find("sent.5"))
    routes = {attribute(span, "http.route") for span in exporting.collector.spans}
    assert PATHS["updates"] in routes
    assert not routes & {"/livez", "/readyz", "/health", "/metrics"}


def test_no_thread_starts_during_requests(exporting: Exporting) -> None:
    """The exporter's thread runs before the first request, and requests add no thread."""
    process = psutil.Process(exporting.served.process.pid)
    before = process.num_threads()
    for i in range(5):
        post(exporting.served, f"threads.{i}", json=PAIR)
    until(lambda: exporting.collector.find("threads.4"))
    assert process.num_threads() <= before


def stop(running: Served) -> int:
    """Send SIGTERM and return the exit code."""
    running.process.send_signal(signal.SIGTERM)
    return running.process.wait(60.0)


def test_last_spans_are_exported_before_the_process_ends(tiny_folder: Path) -> None:
    """After SIGTERM the service exports the spans that still wait, with the name and attributes
    from the environment."""
    with collecting() as collector:
        variables = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces",
            "OTEL_BSP_SCHEDULE_DELAY": "3600000",
            "OTEL_SERVICE_NAME": "a-name",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
        with served(model=tiny_folder, api_keys=KEY, variables=variables) as running:
            post(running, "late.1", json=PAIR)
            log_of(running).await_request("late.1")
            assert not collector.received
            assert stop(running) == 0
        assert collector.find("late.1") is not None
        assert collector.resource["service.name"] == "a-name"
        assert collector.resource["deployment.environment.name"] == "test"


def reports(running: Served) -> list[str]:
    """Log lines about the collector."""
    lines = [json.loads(line) for line in log_of(running).text.splitlines() if line[:1] == "{"]
    return [line["event"] for line in lines if line["event"] != "request"]


@pytest.mark.parametrize("kind", ["closed", "failing", "silent"])
def test_collector_that_fails_costs_one_log_line(tiny_folder: Path, kind: str) -> None:
    """If the collector is down, answers 503, or never answers, the service logs one line. It still
    answers requests, and stops with status 0."""
    with collecting(503) as collector, socket.create_server(("127.0.0.1", 0)) as silent:
        url = {
            "closed": f"http://127.0.0.1:{free_port()}",
            "failing": collector.url,
            "silent": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }[kind]
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_BSP_MAX_QUEUE_SIZE": "8",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4",
        }
        with served(model=tiny_folder, api_keys=KEY, variables=variables) as running:
            for i in range(10):
                post(running, f"down.{i}", json=PAIR)
            until(lambda: reports(running) or None)
            assert httpx.get(f"{running.url}/readyz").is_success
            assert stop(running) == 0
            assert len(reports(running)) == 1
            assert CANARY not in log_of(running).text
