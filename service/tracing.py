"""Traces: one OpenTelemetry span for each request, with a child for each of its stages.

deltaw makes the spans itself, after the answer is sent, from the data of the request log. The
instrumentations of FastAPI and of ASGI also export paths, query strings and the messages of
exceptions, which may contain a caller's text. A span of deltaw has no attributes but `ATTRIBUTES`,
`deltaw.model` and `error.type`.

OpenTelemetry's SDK is imported only if an endpoint is set.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

from service import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
"""The only protocol that is supported."""
LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)
"""Loggers of the SDK that report an unreachable collector and dropped spans."""
HEADERS_LOGGER = "opentelemetry.util.re"
"""Logger of the SDK that quotes malformed headers, which may hold a secret."""
REPORT_SECONDS = 60.0
"""Minimum seconds between two log lines about the collector."""
FLUSH_SECONDS = 3.0
"""Maximum seconds to export the last spans when the service stops."""
MAX_TRACEPARENT = 512
"""Maximum number of characters read from the header `traceparent`."""
UNTRACED = ("/livez", "/readyz", "/health", "/metrics")
"""Routes without spans: probes and scrapes."""
ATTRIBUTES: Mapping[str, str] = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "problem": "deltaw.problem",
    "request_id": "deltaw.request_id",
    "rows": "deltaw.rows",
    "rows_cached": "deltaw.rows_cached",
    "lines": "deltaw.lines",
    "failed_lines": "deltaw.failed_lines",
}
"""Attributes of a request's span, by the fields of its log line. A span also has `deltaw.model`,
and `error.type` if the status is 500 or above."""
log = structlog.get_logger("deltaw")


def obstacle(environment: Mapping[str, str]) -> str | None:
    """Return the reason why these variables give no traces.

    Returns:
        A sentence for the log; empty if the variables do not ask for traces; None if traces can be
        exported.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or exporter == "none" or not any(map(environment.get, ENDPOINTS)):
        return ""
    if exporter != "otlp":
        return f"OTEL_TRACES_EXPORTER is `{exporter}`; only `otlp` and `none` are supported."
    named = next((value for name in PROTOCOLS if (value := environment.get(name))), PROTOCOL)
    if named != PROTOCOL:
        return f"OTEL_EXPORTER_OTLP_PROTOCOL is `{named}`; only `{PROTOCOL}` is supported."
    return None


class Seldom(logging.Filter):
    """Passes one record per `REPORT_SECONDS`, so that a collector that is down fills no log."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to pass a record."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + REPORT_SECONDS
        return True


def withhold(record: logging.LogRecord) -> bool:
    """Pass a record without the values that it quotes."""
    record.args = ("(withheld)",)
    return True


class Tracing:
    """Exports the spans of requests, if the environment names a collector.

    Args:
        provider: Receives the spans; None lets `start` create one from the environment.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer: Tracer | None = None
        self._seldom = Seldom()
        self.model = ""

    def start(self) -> None:
        """Start the exporter and its thread, if the environment names a collector.

        No thread starts later. If an error occurs, the service logs it and runs without traces.
        """
        reason = obstacle(os.environ) if self._provider is None else None
        if self._provider is None and reason is None:
            try:
                self._provider = _exporting_provider()
            except ModuleNotFoundError as error:
                reason = f"{error.name} is not installed: install deltaw[otel]."
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
        if reason:
            log.warning(f"tracing is off: {reason}")
        if self._provider is not None:
            self._tracer = self._provider.get_tracer("deltaw", __version__)
            for name in LOGGERS:
                logging.getLogger(name).addFilter(self._seldom)

    def close(self) -> None:
        """Export the last spans, for at most `FLUSH_SECONDS`."""
        if self._provider is not None:
            # `shutdown` waits up to 30 s for a collector that does not answer.
            flushing = threading.Thread(target=self._provider.shutdown, name="flush", daemon=True)
            flushing.start()
            flushing.join(FLUSH_SECONDS)
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self._seldom)

    def record(
        self,
        traceparent: str | None,
        fields: Mapping[str, str | int],
        start: float,
        seconds: float,
        stages: Mapping[str, tuple[float, float]],
    ) -> str | None:
        """Export the span of a finished request, and a child for each stage.

        Args:
            traceparent: Header that names the caller's span; a malformed one is ignored.
            fields: Fields of the request's log line.
            start: Monotonic time in seconds at which the request began.
            seconds: Duration of the request.
            stages: Monotonic start and duration of each stage, both in seconds, by name.

        Returns:
            The id of the trace; None if the request has no span.
        """
        if (tracer := self._tracer) is None or fields["route"] in UNTRACED:
            return None
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        offset = time.time_ns() - time.monotonic_ns()
        # `tracestate` and `baggage` may contain a caller's text, so they are not read.
        sent = {"traceparent": (traceparent or "")[:MAX_TRACEPARENT]}
        attributes = {name: fields[field] for field, name in ATTRIBUTES.items() if field in fields}
        begins = _nanoseconds(start) + offset
        span = tracer.start_span(
            f"{fields['method']} {fields['route']}",
            TraceContextTextMapPropagator().extract(sent),
            SpanKind.SERVER,
            attributes | {"deltaw.model": self.model},
            start_time=begins,
        )
        if int(fields["status"]) >= 500:
            span.set_attribute("error.type", fields.get("problem", str(fields["status"])))
            span.set_status(StatusCode.ERROR)
        for stage, (began, spent) in stages.items():
            stage_begins = _nanoseconds(began) + offset
            child = tracer.start_span(stage, set_span_in_context(span), start_time=stage_begins)
            child.end(stage_begins + _nanoseconds(spent))
        span.end(begins + _nanoseconds(seconds))
        return f"{span.get_span_context().trace_id:032x}"


def _nanoseconds(seconds: float) -> int:
    return int(1e9 * seconds)


def _exporting_provider() -> TracerProvider:
    """Create the provider that sends spans to the collector, and start its thread."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    logging.getLogger(HEADERS_LOGGER).addFilter(withhold)
    found = Resource.create()
    if str(found.attributes["service.name"]).startswith("unknown_service"):
        found = found.merge(Resource({"service.name": "deltaw"}))
    resource = Resource({"service.version": __version__}).merge(found)
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
