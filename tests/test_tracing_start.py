"""Start and stop of tracing, by environment, installed packages and collector."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from structlog.testing import capture_logs

from service import tracing
from service.tracing import ENDPOINTS, Tracing, obstacle

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        (ENDPOINT, None),
        ({ENDPOINTS[0]: "http://127.0.0.1:4318/v1/traces"}, None),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, None),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "false"}, None),
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "True"}, ""),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, ""),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "console"}, "`console`"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "`grpc`"),
    ],
)
def test_environment_decides_whether_to_trace(
    environment: dict[str, str], reason: str | None
) -> None:
    """An endpoint turns traces on. There is a reason if deltaw cannot export them, and an empty one
    if the environment does not ask for them."""
    found = obstacle(environment)
    assert (found is None) == (reason is None)
    assert (found == "") == (reason == "")
    assert reason is None or reason in str(found)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with an endpoint."""
    for name, value in ENDPOINT.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "only `otlp` and `none`"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "ValueError: max_queue_size"),
    ],
)
def test_unusable_environment_costs_one_log_line(
    endpoint: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """The service starts without traces, and one warning says why."""
    endpoint.setenv(name, value)
    traces = Tracing()
    with capture_logs() as logs:
        traces.start()
    (line,) = logs
    assert line["log_level"] == "warning"
    assert line["event"].startswith("tracing is off: ")
    assert said in line["event"]
    traces.close()


def test_missing_packages_cost_one_log_line(endpoint: pytest.MonkeyPatch) -> None:
    """If an endpoint is set and the packages are missing, one warning says what to install."""
    missing: Any = None
    endpoint.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", missing)
    with capture_logs() as logs:
        Tracing().start()
    (line,) = logs
    assert "install deltaw[otel]" in line["event"]
    assert line["log_level"] == "warning"


@pytest.mark.parametrize("named", [True, False])
def test_sdk_is_imported_only_for_an_endpoint(named: bool) -> None:
    """Without an endpoint, the SDK is not imported and no thread starts."""
    code = (
        "import sys, threading; from service.tracing import Tracing; traces = Tracing();"
        "traces.start(); print('opentelemetry.sdk' in sys.modules, threading.active_count())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=ENDPOINT if named else {},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.split() == (["True", "2"] if named else ["False", "1"])


def test_collector_that_hangs_does_not_delay_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """`close` returns after `FLUSH_SECONDS`, even if the last spans are not exported."""
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.01)
    released = threading.Event()

    class Hanging(TracerProvider):
        def shutdown(self) -> None:
            released.wait()

    traces = Tracing(Hanging(shutdown_on_exit=False))
    traces.close()
    assert not released.is_set()
    (flush,) = [thread for thread in threading.enumerate() if thread.name == "flush"]
    assert flush.daemon
    released.set()
    flush.join()


def test_collector_that_is_down_is_reported_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter passes one record per minute."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    seldom, record = tracing.Seldom(), logging.makeLogRecord({})
    passed = []
    for now[0] in (1000.0, 1001.0, 1059.0, 1061.0, 1062.0):
        passed.append(seldom.filter(record))
    assert passed == [True, False, False, True, False]


def test_malformed_headers_are_reported_without_their_values(
    endpoint: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A header that the SDK cannot read may hold a secret, which the log does not repeat."""
    endpoint.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer secret;;")
    traces = Tracing()
    traces.start()
    traces.close()
    assert "Header format invalid" in caplog.text
    assert "secret" not in caplog.text
