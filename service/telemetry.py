"""What an operator sees: metrics, one log line a request, and the request's id. Never a piece of a
prompt."""

from __future__ import annotations

import io
import logging
import re
import secrets
import sys
from contextlib import suppress
from typing import Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from typing_extensions import Buffer

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BYTES = tuple(float(4**i) for i in range(4, 14))
TOKENS = tuple(float(2**i) for i in range(0, 16))
ERRORS = tuple(10.0**-i for i in range(9, -1, -1))


class Metrics:
    """The service's metrics and the process's, in a registry of their own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "deltaw_http_requests",
            "Requests by method, route template and status.",
            ["method", "route", "status"],
            registry=registry,
        )
        self.duration = Histogram(
            "deltaw_http_request_duration_seconds",
            "From the first byte of the request to the last of the answer.",
            ["method", "route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_depth = Gauge(
            "deltaw_queue_depth", "Requests that wait for their turn.", registry=registry
        )
        self.queue_wait = Histogram(
            "deltaw_queue_wait_seconds",
            "Waiting before the turn.",
            buckets=SECONDS,
            registry=registry,
        )
        self.forward = Histogram(
            "deltaw_forward_seconds", "One forward of one pack.", buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "deltaw_batch_size", "Runs in one pack.", buckets=TOKENS, registry=registry
        )
        self.rejected = Counter(
            "deltaw_rejected", "Requests refused, by problem code.", ["reason"], registry=registry
        )
        self.input_tokens = Histogram(
            "deltaw_input_tokens", "Rows a request asks for.", buckets=TOKENS, registry=registry
        )
        self.response_bytes = Histogram(
            "deltaw_response_bytes", "Size of an answer's body.", buckets=BYTES, registry=registry
        )
        self.prefix_cache_hits = Gauge(
            "deltaw_prefix_cache_hits", "Rows found among known prefixes.", registry=registry
        )
        self.prefix_cache_misses = Gauge(
            "deltaw_prefix_cache_misses", "Rows that had to be computed.", registry=registry
        )
        self.prefix_cache_bytes = Gauge(
            "deltaw_prefix_cache_bytes", "What known prefixes take.", registry=registry
        )
        self.equivalence_error = Histogram(
            "deltaw_equivalence_relative_error",
            "Relative error of each equivalence check, the self-check's included.",
            buckets=ERRORS,
            registry=registry,
        )
        self.equivalence_failures = Counter(
            "deltaw_equivalence_failures",
            "Equivalence checks that failed, the self-check's included.",
            registry=registry,
        )
        self.build_info = Gauge(
            "deltaw_build_info",
            "1, with what is loaded.",
            ["version", "model", "revision", "device", "dtype"],
            registry=registry,
        )

    def observe_forward(self, seconds: float, runs: int) -> None:
        """One forward took so long and held so many runs."""
        self.forward.observe(seconds)
        self.batch_size.observe(runs)


def request_id(offered: str | None) -> str:
    """The caller's id where it is 1 to 128 of `A-Za-z0-9._-`, else a new one."""
    if offered is not None and REQUEST_ID.fullmatch(offered):
        return offered
    return secrets.token_hex(8)


class Lossy(io.FileIO):
    """A file descriptor whose writes never fail: what a full disk or a closed pipe does not take
    is lost."""

    def write(self, data: Buffer, /) -> int:
        """All of the data, taken or lost."""
        with suppress(OSError):
            super().write(data)
        return memoryview(data).nbytes


def configure_logs(log_format: Literal["auto", "json", "console"]) -> None:
    """Send structlog and the standard library's warnings to stderr, as lines of JSON or for a
    person.

    The process's own stderr is replaced by one that never fails, so that a log that cannot be
    written costs its lines and no request.
    """
    if sys.__stderr__ is not None and sys.stderr is sys.__stderr__:
        sys.stderr = io.TextIOWrapper(
            Lossy(sys.__stderr__.fileno(), "w", closefd=False),
            encoding="utf-8",
            errors="backslashreplace",
            write_through=True,
        )
    terminal = sys.stderr.isatty()
    console = log_format == "console" or (log_format == "auto" and terminal)
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    if console:
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # a line is one write
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
