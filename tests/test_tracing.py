"""Traces: one span for each request, with a child for each stage and no text of the caller."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from service.settings import Settings
from service.tracing import Tracing
from tests.api.test_bodies import PATHS
from tests.api.wire import CANARY
from tests.conftest import app_client

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = {"queue", "tokenize", "forward", "compute", "serialize"}
PAIR = {"context": f"abc {CANARY}", "query": f" {CANARY}"}
NDJSON = {"Content-Type": "application/x-ndjson"}
REQUESTS: dict[str, dict[str, Any]] = {
    "answer": {"json": PAIR},
    "lines": {"content": "\n".join([json.dumps(PAIR)] * 3 + ["{}"]), "headers": NDJSON},
    "problem": {"json": {CANARY: CANARY}},
    "empty": {"json": {"context": "", "query": CANARY}},
    "query": {"json": PAIR, "params": {"q": CANARY}},
    "malformed": {"json": PAIR, "headers": {"traceparent": "00-xyz-1-01"}},
    "zero": {"json": PAIR, "headers": {"traceparent": f"00-{'0' * 32}-{PARENT}-01"}},
    "unsampled": {"json": PAIR, "headers": {"traceparent": f"00-{TRACE}-{PARENT}-00"}},
    "state": {"json": PAIR, "headers": {"tracestate": f"a={CANARY}", "baggage": f"a={CANARY}"}},
}
"""Requests to `/v1/weight-updates` by their id. They continue the trace `TRACE` unless they have
their own `traceparent`."""
PROBES = ("/livez", "/readyz", "/health", "/metrics")


@dataclass
class Traced:
    """Answers, spans and log lines of a traced application.

    Args:
        spans: All spans.
        status: Status of each answer by request id.
        logged: Log lines by request id.
    """

    spans: Sequence[ReadableSpan]
    status: dict[str, int]
    logged: dict[str, dict[str, Any]]

    def root(self, request_id: str) -> ReadableSpan:
        """The span of a request."""
        (found,) = [
            span
            for span in self.spans
            if (span.attributes or {}).get("deltaw.request_id") == request_id
        ]
        return found

    def children(self, request_id: str) -> dict[str, ReadableSpan]:
        """The children of a request's span by name."""
        own = context(self.root(request_id)).span_id
        found = [s for s in self.spans if s.parent is not None and s.parent.span_id == own]
        assert len({span.name for span in found}) == len(found)
        return {span.name: span for span in found}


def context(span: ReadableSpan) -> Any:
    """The ids of a span."""
    assert span.context is not None
    return span.context


def seconds(span: ReadableSpan) -> float:
    """The duration of a span."""
    assert span.end_time is not None
    assert span.start_time is not None
    return (span.end_time - span.start_time) / 1e9


def in_memory() -> tuple[Tracing, InMemorySpanExporter]:
    """Tracing that keeps its spans in memory, and the exporter that has them."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider), exporter


async def ask(folder: Path) -> Traced:
    """Send all requests to a traced application."""
    traces, exporter = in_memory()
    status: dict[str, int] = {}
    with capture_logs() as logs:
        async with app_client(Settings(model=str(folder)), traces) as client:

            async def send(path: str, name: str, method: str = "POST", **sent: Any) -> None:
                headers = {
                    "X-Request-ID": name,
                    "traceparent": f"00-{TRACE}-{PARENT}-01",
                    **sent.pop("headers", {}),
                }
                answer = await client.request(method, path, headers=headers, **sent)
                status[name] = answer.status_code

            for name, sent in REQUESTS.items():
                await send(PATHS["updates"], name, **sent)
            stream = {"prompt": CANARY, "max_tokens": 8, "stream": True}
            await send("/v1/completions", "stream", json=stream)
            await send(f"/{CANARY}", "unmatched", params={CANARY: CANARY})
            for path in PROBES:
                await send(path, path.strip("/"), method="GET")
            spans = exporter.get_finished_spans()
    named = {line["request_id"]: line for line in logs if "request_id" in line}
    return Traced(spans, status, dict(named))


@pytest.fixture(scope="module")
def traced(tiny_folder: Path) -> Traced:
    """A traced application in this process that has answered all requests."""
    return asyncio.run(ask(tiny_folder))


def test_requests_got_their_answers(traced: Traced) -> None:
    """Each request got the status that the other tests assume."""
    expected = dict.fromkeys([*REQUESTS, "stream", *(path.strip("/") for path in PROBES)], 200)
    assert traced.status == expected | {"problem": 422, "empty": 422, "unmatched": 404}


@pytest.mark.parametrize("name", ["answer", "lines", "stream"])
def test_stages_are_children_of_the_request(traced: Traced, name: str) -> None:
    """The five stages are children of the request's span, belong to the caller's trace, and lie
    within the request."""
    root, children = traced.root(name), traced.children(name)
    assert root.parent is not None
    assert (f"{context(root).trace_id:032x}", f"{root.parent.span_id:016x}") == (TRACE, PARENT)
    assert root.kind.name == "SERVER"
    assert set(children) == STAGES
    assert root.start_time is not None
    assert root.end_time is not None
    for child in children.values():
        assert context(child).trace_id == context(root).trace_id
        assert child.start_time is not None
        assert child.end_time is not None
        assert root.start_time <= child.start_time <= child.end_time <= root.end_time


def test_children_last_as_long_as_the_logged_stages(traced: Traced) -> None:
    """A child is as long as its stage in the log, and all children together are no longer than the
    request."""
    children, line = traced.children("answer"), traced.logged["answer"]
    assert {name: 1000 * seconds(span) for name, span in children.items()} == pytest.approx(
        line["timings_ms"], abs=2e-3
    )
    assert 0 < sum(map(seconds, children.values())) <= seconds(traced.root("answer"))
    assert 1000 * seconds(traced.root("answer")) == pytest.approx(line["duration_ms"], abs=2e-3)


def test_refused_request_has_the_stages_that_it_reached(traced: Traced) -> None:
    """A request that is refused while it is planned has one child. A request that is refused
    earlier has none."""
    assert set(traced.children("empty")) == {"tokenize"}
    assert set(traced.logged["empty"]["timings_ms"]) == {"tokenize"}
    assert not traced.children("problem")


async def expired(folder: Path) -> tuple[int, Traced]:
    """Return the status and the spans of a request that expires in the queue."""
    traces, exporter = in_memory()
    async with app_client(Settings(model=str(folder), deadline_seconds=1e-9), traces) as client:
        headers = {"X-Request-ID": "late"}
        answer = await client.post(PATHS["updates"], json=PAIR, headers=headers)
        return answer.status_code, Traced(exporter.get_finished_spans(), {}, {})


def test_expired_request_shows_its_wait(tiny_folder: Path) -> None:
    """A request that expires in the queue has the child `queue` and no child `forward`."""
    status, found = asyncio.run(expired(tiny_folder))
    assert status == 504
    assert set(found.children("late")) == {"tokenize", "queue"}
    assert (found.root("late").attributes or {})["error.type"] == "deadline_exceeded"


def test_stages_begin_in_their_order(traced: Traced) -> None:
    """A request is planned, waits, is computed and is written, in this order."""
    begun = {name: span.start_time or 0 for name, span in traced.children("answer").items()}
    order = [begun[name] for name in ("tokenize", "queue", "forward", "compute", "serialize")]
    assert order == sorted(order)


def test_span_has_the_documented_attributes(traced: Traced) -> None:
    """A span names route, status, rows and model, the code of a problem, and counts of lines."""
    assert dict(traced.root("answer").attributes or {}) == {
        "http.request.method": "POST",
        "http.route": PATHS["updates"],
        "http.response.status_code": 200,
        "deltaw.request_id": "answer",
        "deltaw.rows": traced.logged["answer"]["rows"],
        "deltaw.rows_cached": traced.logged["answer"]["rows_cached"],
        "deltaw.model": traced.root("problem").attributes["deltaw.model"],  # type: ignore[index]
    }
    assert traced.root("answer").name == f"POST {PATHS['updates']}"
    refused = dict(traced.root("problem").attributes or {})
    assert (refused["http.response.status_code"], refused["deltaw.problem"]) == (422, "validation")
    assert traced.root("problem").status.is_unset
    lines = dict(traced.root("lines").attributes or {})
    assert (lines["deltaw.lines"], lines["deltaw.failed_lines"]) == (4, 1)
    again = dict(traced.root("query").attributes or {})
    assert again["deltaw.rows_cached"] > 0  # type: ignore[operator]


def test_spans_hold_no_text_of_the_caller(traced: Traced) -> None:
    """A span contains the route, but no prompt, query string, unmatched path, `tracestate` or
    `baggage`."""
    exported = "".join(span.to_json() for span in traced.spans)
    assert CANARY not in exported
    assert PATHS["updates"] in exported
    assert traced.root("unmatched").name == "any unmatched"
    assert not any(span.events for span in traced.spans)


def test_probes_have_no_spans(traced: Traced) -> None:
    """Probes and scrapes are not traced, and their log lines name no trace."""
    routes = {(span.attributes or {}).get("http.route") for span in traced.spans}
    assert not routes & set(PROBES)
    assert all("trace_id" not in traced.logged[path.strip("/")] for path in PROBES)


@pytest.mark.parametrize("name", ["malformed", "zero"])
def test_malformed_traceparent_is_ignored(traced: Traced, name: str) -> None:
    """A malformed `traceparent` begins a new trace."""
    root = traced.root(name)
    assert root.parent is None
    assert f"{context(root).trace_id:032x}" != TRACE


def test_caller_decides_whether_its_trace_is_exported(traced: Traced) -> None:
    """A trace that the caller does not sample is logged but not exported."""
    ids = {(span.attributes or {}).get("deltaw.request_id") for span in traced.spans}
    assert "unsampled" not in ids
    assert traced.logged["unsampled"]["trace_id"] == TRACE


def test_log_line_names_the_trace(traced: Traced) -> None:
    """The log line of a request has the id of its trace."""
    assert traced.logged["answer"]["trace_id"] == TRACE
    made = f"{context(traced.root('malformed')).trace_id:032x}"
    assert traced.logged["malformed"]["trace_id"] == made


def failed_span(problem: str | None) -> ReadableSpan:
    """The span of a request with status 500."""
    traces, exporter = in_memory()
    traces.start()
    fields: dict[str, str | int] = {"method": "POST", "route": "/v1/model", "status": 500}
    fields |= {"problem": problem} if problem else {}
    traces.record(None, fields, time.monotonic(), 0.0, {})
    (span,) = exporter.get_finished_spans()
    return span


@pytest.mark.parametrize(("problem", "kind"), [("internal", "internal"), (None, "500")])
def test_fault_is_an_error_without_a_message(problem: str | None, kind: str) -> None:
    """The span of a 500 is an error that has the problem's code or the status, and no message."""
    span = failed_span(problem)
    assert not span.status.is_ok
    assert not span.status.is_unset
    assert span.status.description is None
    assert (span.attributes or {})["error.type"] == kind
