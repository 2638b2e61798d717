"""Telemetry: request ids, metrics in a registry per application, and logs without prompts."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from service.telemetry import Metrics, configure_logs, request_id
from tests.api.wire import CANARY


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore the logging configuration after each test."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.parametrize("offered", ["a", "A.b_c-9", "x" * 128])
def test_valid_request_id_is_kept(offered: str) -> None:
    """An id of 1 to 128 allowed characters is kept."""
    assert request_id(offered) == offered


@pytest.mark.parametrize("offered", [None, "", "x" * 129, "a\n", "a b", "ä", "a\u0000", "١"])
def test_invalid_request_id_is_replaced(offered: str | None) -> None:
    """Any other id is replaced by a new one each time."""
    first, second = request_id(offered), request_id(offered)
    assert first != second
    assert offered not in (first, second)
    assert re.fullmatch("[A-Za-z0-9._-]{1,128}", first)


def test_applications_have_separate_registries() -> None:
    """Two applications in one process count separately."""
    one, other = Metrics(), Metrics()
    one.observe_forward(0.01, 3)
    assert one.registry.get_sample_value("deltaw_batch_size_sum") == 3.0
    assert other.registry.get_sample_value("deltaw_batch_size_sum") == 0.0


def fail(prompt: str) -> None:
    """Raise an error in a function whose local variable is a prompt."""
    assert prompt
    raise ValueError("something nobody has a name for")


@pytest.mark.parametrize("log_format", ["json", "console", "auto"])
def test_tracebacks_contain_no_local_variables(
    capsys: pytest.CaptureFixture[str], log_format: Literal["auto", "json", "console"]
) -> None:
    """A traceback in the log names the place and the error but no values of variables."""
    configure_logs(log_format)
    try:
        fail(CANARY)
    except ValueError:
        structlog.get_logger("test").exception("internal error", request_id="r1")
        logging.getLogger("other").exception("internal error")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("Traceback") == 2
    assert "something nobody has a name for" in said.err
    assert "r1" in said.err
    assert CANARY not in said.err


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_log_lines_are_json_without_a_terminal(
    capsys: pytest.CaptureFixture[str], log_format: Literal["auto", "json", "console"]
) -> None:
    """Without a terminal every log line is one JSON object with a UTC time, also for libraries."""
    configure_logs(log_format)
    structlog.get_logger("test").info("request", status=200)
    logging.getLogger("library").warning("beware of %s", "it")
    logging.getLogger("library").info("never mind")
    ours, theirs = map(json.loads, capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["status"], ours["level"]) == ("request", 200, "info")
    assert (theirs["event"], theirs["level"]) == ("beware of it", "warning")
    assert ours["timestamp"].endswith("Z")
    assert theirs["timestamp"].endswith("Z")


def test_log_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log line is one write, so that no other output can break it up."""
    written: list[str] = []

    class Recorder(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Recorder())
    configure_logs("json")
    structlog.get_logger("test").info("request", status=200)
    (line,) = written
    assert line.endswith("}\n")
