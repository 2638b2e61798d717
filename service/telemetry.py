"""Metrics, logs and request ids. None of them ever holds a piece of a prompt."""

from __future__ import annotations

import io
import logging
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import JSONRenderer, TimeStamper, add_log_level, format_exc_info
from structlog.stdlib import ProcessorFormatter
from structlog.typing import Processor
from typing_extensions import Buffer

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BYTES = tuple(float(4**i) for i in range(4, 14))
TOKENS = tuple(float(2**i) for i in range(0, 16))
ERRORS = tuple(10.0**-i for i in range(9, -1, -1))


class Total(Collector):
    """A counter whose value is read elsewhere when metrics are collected.

    Args:
        name: Name of the metric, without `deltaw_` and `_total`.
        text: Its help.
        read: Returns the value, which never falls.
    """

    def __init__(self, name: str, text: str, read: Callable[[], int]) -> None:
        self._name = name
        self._text = text
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the counter with its value."""
        yield CounterMetricFamily(f"deltaw_{self._name}", self._text, self._read())


class Metrics:
    """Metrics of the service and of its process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        counter = partial(Counter, namespace="deltaw", registry=self.registry)
        gauge = partial(Gauge, namespace="deltaw", registry=self.registry)
        histogram = partial(Histogram, namespace="deltaw", registry=self.registry)
        seconds = partial(histogram, buckets=SECONDS)
        tokens = partial(histogram, buckets=TOKENS)

        self.requests = counter(
            "http_requests",
            "Requests answered, by method, route template and status.",
            ["method", "route", "status"],
        )
        self.duration = seconds(
            "http_request_duration_seconds",
            "Seconds from the head of a request to the end of its answer.",
            ["method", "route"],
        )
        self.queue_depth = gauge("queue_depth", "Requests that wait in the queue.")
        self.queue_wait = seconds(
            "queue_wait_seconds", "Seconds that a request waited in the queue."
        )
        self.forward = seconds("forward_seconds", "Seconds of one forward.")
        self.batch_size = tokens("batch_size", "Runs in one forward.")
        self.lines = counter(
            "ndjson_lines",
            "Answered lines of NDJSON requests, by route and status.",
            ["route", "status"],
        )
        self.rejected = counter(
            "rejected", "Requests and lines answered with a problem, by its code.", ["reason"]
        )
        self.input_tokens = tokens(
            "input_tokens", "Rows that a request, or a line of one, computes, cached ones included."
        )
        self.response_bytes = histogram(
            "response_bytes", "Bytes of the answer's body to a request or line.", buckets=BYTES
        )
        self.prefix_cache_hits = gauge("prefix_cache_hits", "Rows found in the prefix cache.")
        self.prefix_cache_misses = gauge(
            "prefix_cache_misses", "Rows not found in the prefix cache, which had to be computed."
        )
        self.prefix_cache_bytes = gauge("prefix_cache_bytes", "Bytes of the prefix cache.")
        self.device_memory = gauge(
            "device_memory_bytes",
            "Bytes in the memory of the device that holds the model, by kind.",
            ["kind"],
        )
        self.equivalence_error = histogram(
            "equivalence_relative_error",
            "Relative error of each equivalence check, including the self-check at start.",
            buckets=ERRORS,
        )
        self.equivalence_failures = counter(
            "equivalence_failures",
            "Equivalence checks that failed, including the self-check at start.",
        )
        self.adapters = gauge("adapters", "Adapters on the disk.")
        self.adapter_bytes = gauge("adapter_bytes", "Bytes of all adapters' files.")
        self.adapter_seconds = histogram(
            "adapter_seconds",
            "Seconds to make an adapter, the wait in the queue included.",
            ["kind"],
            buckets=(*SECONDS, 120.0, 300.0),
        )
        for kind in ("token", "static"):  # the first adapter is an increase too
            self.adapter_seconds.labels(kind)
        self.build_info = gauge(
            "build_info",
            "Always 1; the labels name the version and the loaded model.",
            ["version", "model", "revision", "device", "dtype"],
        )

    def count(self, name: str, text: str, read: Callable[[], int]) -> None:
        """Export a counter that is kept elsewhere. The arguments are those of `Total`."""
        self.registry.register(Total(name, text, read))

    def observe_forward(self, seconds: float, runs: int) -> None:
        """Record the seconds and the runs of one forward."""
        self.forward.observe(seconds)
        self.batch_size.observe(runs)


def request_id(offered: str | None) -> str:
    """Return the caller's id if it is 1 to 128 characters of `A-Za-z0-9._-`, else a new one."""
    if offered is not None and REQUEST_ID.fullmatch(offered):
        return offered
    return secrets.token_hex(8)


class Lossy(io.FileIO):
    """File descriptor whose writes never fail. A full disk or a closed pipe loses the data."""

    def write(self, data: Buffer, /) -> int:
        """Write the data or lose it, and report all of it as written."""
        with suppress(OSError):
            super().write(data)
        return memoryview(data).nbytes


def configure_logs(log_format: Literal["auto", "json", "console"]) -> None:
    """Send structlog and the standard library's warnings to stderr.

    This replaces the process's stderr by one that never fails, so that a log that cannot be
    written costs its lines and no request.

    Args:
        log_format: `json` (one line each), `console` (for people), or `auto` (`console` on a
            terminal, else `json`).
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
    shared: list[Processor] = [add_log_level, TimeStamper(fmt="iso", utc=True)]
    last: list[Processor] = [format_exc_info, JSONRenderer()]
    if console:
        last = [ConsoleRenderer(colors=terminal, exception_formatter=plain_traceback)]
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # a line is one write
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    plain = [ProcessorFormatter.remove_processors_meta, *last]
    handler.setFormatter(ProcessorFormatter(processors=plain, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
