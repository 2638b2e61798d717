"""A collector of OpenTelemetry spans, which is an OTLP/HTTP server in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector:
    """A running collector and what it has received.

    Args:
        url: Base URL, for `OTEL_EXPORTER_OTLP_ENDPOINT`.
        received: Bodies of the requests to `/v1/traces`.
    """

    url: str
    received: list[bytes] = field(default_factory=list)

    @property
    def spans(self) -> list[Span]:
        """All spans so far."""
        return [
            span
            for one in self._requests()
            for resource in one.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def resource(self) -> dict[str, str]:
        """Attributes of the resource that sent the first spans."""
        return named(self._requests()[0].resource_spans[0].resource.attributes)

    def find(self, request_id: str) -> Span | None:
        """The span of a request; None if it has not arrived yet."""
        return next(
            (s for s in self.spans if attribute(s, "deltaw.request_id") == request_id), None
        )

    def children(self, parent: Span) -> dict[str, Span]:
        """The children of a span by name."""
        return {s.name: s for s in self.spans if s.parent_span_id == parent.span_id}

    def _requests(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in self.received]


def named(attributes: Iterable[KeyValue]) -> dict[str, str]:
    """Attributes as texts, by name."""
    found = {}
    for one in attributes:
        kind = one.value.WhichOneof("value") or "string_value"
        found[one.key] = str(getattr(one.value, kind))
    return found


def attribute(span: Span, name: str) -> str | None:
    """An attribute of a span as text; None if the span lacks it."""
    return named(span.attributes).get(name)


@contextmanager
def collecting(status: int = 200) -> Iterator[Collector]:
    """Run a collector that answers each request with this status."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                received.append(body)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Collector(f"http://127.0.0.1:{server.server_address[1]}", received)
        server.shutdown()
        thread.join()
