"""Benchmarks: what the table keeps when a workload fails, and how requests are accounted for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from benchmarks.agreement import Disagreement
from benchmarks.bars import TABLE, find_bar
from benchmarks.bench import Bench
from benchmarks.load.account import account
from benchmarks.report import BEGIN, END, page
from benchmarks.results import Row
from benchmarks.run import WORKLOADS, measure
from benchmarks.server import Request, Server


def test_failed_part_keeps_its_rows_and_does_not_end_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows before a failure, of the workload's other parts and of later workloads are printed and
    written."""

    def failing(_bench: Bench) -> Iterator[Row]:
        yield Row("W7", "before the failure", "/livez p99", 2.0, "ms")
        raise RuntimeError("refused with 429")

    def working(_bench: Bench) -> Iterator[Row]:
        yield Row("W8", "bundled", "start to ready", 3.0, "s")

    bench = Bench(None, tmp_path, torch.device("cpu"), 0.1, 1)
    workloads = {"W7": (failing, working), "W8": (working,)}
    assert measure(bench, workloads, (), tmp_path / "rows.json") == ["W7"]
    printed = capsys.readouterr()
    assert "before the failure" in printed.out
    assert "refused with 429" in printed.err
    earlier, value, unit, *bar = next(
        line for line in printed.out.splitlines() if line.startswith("W8")
    ).split()[5:10]
    assert (earlier, value, unit, bar) == ("4.2", "3", "s", ["<=", "3.5"])
    written = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["workload"] for row in written] == ["W7", "W8", "W8"]


def test_every_bar_belongs_to_a_workload() -> None:
    """The table of bars names existing workloads, and a bar is found by figure and size."""
    assert {workload for _, workload, *_ in TABLE} <= set(WORKLOADS)
    bar = find_bar("cpu", "W1", "seed script / engine", 1024)
    assert bar is not None
    assert bar.reached(3.5) is True
    assert bar.reached(3.4) is False
    assert find_bar("cpu", "W1", "seed script / engine", 23) is None


class Scripted(BaseHTTPRequestHandler):
    """A service that answers POST requests with the next of its answers: a status and a body."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[list[tuple[int, bytes]]] = []
    received: ClassVar[list[bytes]] = []
    closes: ClassVar[bool] = False

    def do_POST(self) -> None:
        """Answer, and close the connection without saying so if `closes`."""
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        status, body = self.answers.pop(0)
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.closes

    def log_message(self, format: str, *_: object) -> None:
        """Log nothing."""


@contextmanager
def scripted(*answers: tuple[int, bytes], closes: bool = False) -> Iterator[Server]:
    """The benchmark's client of a scripted service."""
    Scripted.answers, Scripted.received, Scripted.closes = list(answers), [], closes
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            server = Server(process, http.server_port, 0.0)
            yield server
        server.local.connection.close()
        http.shutdown()
        thread.join()


def test_request_is_sent_again_after_429_with_retry_after() -> None:
    """A busy service delays a request of the benchmark; any other refusal raises."""
    with scripted((429, b"{}"), (503, b"{}"), (200, b"{}"), (422, b"{}")) as server:
        assert server.post(Request("/", {})).json == {}
        with pytest.raises(RuntimeError, match="422"):
            server.post(Request("/", {}))


def test_request_is_sent_again_on_a_new_connection() -> None:
    """A connection that the service closed while it was idle does not end a workload."""
    with scripted((200, b"1"), (200, b"2"), closes=True) as server:
        assert [server.post(Request("/", {})).json for _ in range(2)] == [1, 2]


def test_busy_lines_are_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines without an answer because the service was busy are sent again, and they alone."""
    monkeypatch.setattr("benchmarks.server.RETRY_SECONDS", 0.0)

    def lines(*answers: tuple[int | None, int, str]) -> bytes:
        names = ("index", "status", "body")
        return b"".join(
            json.dumps(dict(zip(names, one, strict=True))).encode() + b"\n" for one in answers
        )

    first = lines((1, 200, "b"), (0, 429, "queue_full"), (None, 503, "draining"))
    with scripted((429, b""), (200, first), (200, lines((1, 200, "c"), (0, 200, "a")))) as server:
        assert server.post_lines("/", ["A", "B", "C"]) == ["a", "b", "c"]
    assert Scripted.received[1:] == [b'"A"\n"B"\n"C"\n', b'"A"\n"C"\n']
    with (
        scripted((200, lines((0, 422, "bad")))) as server,
        pytest.raises(RuntimeError, match="422"),
    ):
        server.post_lines("/", ["A"])


def test_report_replaces_the_table_of_the_page() -> None:
    """Rows that differ in size alone share a line, with the sizes whose bar is missed."""
    rows = [
        {"workload": "W1", "case": f"layer 5, {tokens} tokens", "figure": "seed / engine"}
        | {"tokens": tokens, "unit": "times", "value": value}
        | {"bar": {"side": ">=", "earlier": earlier, "limit": 3.5}}
        for tokens, value, earlier in ((22, 5.912, 6), (128, 3.4, None))
    ]
    plain = {"workload": "W8", "case": "bundled", "figure": "start", "tokens": None, "bar": None}
    machine = {"when": "2026-12-01T10:00", "device": "cpu", "processor": "P", "threads": 1}
    report = {
        "machine": machine | {"versions": {"torch": "2"}},
        "rows": [*rows, plain | {"unit": "s", "value": 412.3}],
    }
    told = page(f"Before\n{BEGIN}\nold\n{END}\nafter\n", [report, report]).splitlines()
    assert (told[0], told[-1]) == ("Before", "after")
    assert told[-4:-2] == [
        "| W1 | layer 5, 22, 128 tokens | seed / engine | 6, – | 5.91, 3.4 | ≥ 3.5 | "
        "**no** at 128 |",
        "| W8 | bundled | start |  | 412 s |  |  |",
    ]
    assert "Measured on 2026-12-01 on cpu with P, 1 thread(s); torch 2." in told
    with pytest.raises(ValueError, match="the page needs"):
        page("no place", [report])


GPU = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
PYTHON = r"""#!/bin/sh
echo "$*" >> "$0.log"
case "$*" in *is_available*) exit "${NO_GPU:-0}" ;; *pytest\ -p*) exit "${BAD_TESTS:-0}" ;; esac
"""
"""An interpreter that notes its arguments."""


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "said"),
    [
        ([], {}, 0, ""),
        ([], {"BAD_TESTS": "1"}, 1, "a device test or a workload failed"),
        (["--device", "cpu", "--only", "W4"], {"NO_GPU": "1"}, 0, ""),
        ([], {"NO_GPU": "1"}, 3, "there is no GPU"),
        (["--device"], {}, 2, "--device needs a value"),
        (["--device", "tpu"], {}, 2, "unknown device tpu"),
        (["--install"], {}, 2, "unknown option --install"),
        ([], {"PYTHON": "/none"}, 2, "no Python at /none"),
    ],
)
def test_gpu_script_runs_tests_and_workloads_or_says_why_not(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], code: int, said: str
) -> None:
    """The script runs the device tests and W1 to W9 with the given Python, and its exit code says
    what was wrong."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    variables = {"PATH": os.environ["PATH"], "PYTHON": str(python), **environment}
    command = [str(GPU), "--json", str(tmp_path / "rows.json"), *arguments]
    ran = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, said in ran.stderr) == (code, True), ran.stderr
    if code > 1:
        return
    *_, tests, measured = (tmp_path / "python.log").read_text().splitlines()
    device = "cpu" if arguments else "cuda"
    assert f"-k {device} " in tests
    assert "tests/analysis/test_devices.py" in tests
    chosen = ["W4"] if arguments else [f"W{i}" for i in range(1, 10)]
    assert measured.split("--only ")[1:] == [*(f"{name} " for name in chosen[:-1]), chosen[-1]]
    assert f"-m benchmarks --device {device} --no-peers" in measured


@pytest.mark.parametrize(
    ("record", "logged", "fault"),
    [
        ({"outcome": "answered", "status": 200, "code": ""}, 200, None),
        ({"outcome": "answered", "status": 200, "code": ""}, None, "not in the log"),
        ({"outcome": "answered", "status": 200, "code": ""}, 500, "500 in the log"),
        ({"outcome": "refused", "status": 429, "code": "queue_full"}, 429, None),
        ({"outcome": "refused", "status": 500, "code": "internal"}, 500, "refused with"),
        ({"outcome": "refused", "status": 400, "code": "queue_full"}, 400, "refused with"),
        ({"outcome": "lost", "status": 0, "code": ""}, None, "lost"),
        ({"outcome": "left", "status": 0, "code": ""}, None, None),
    ],
)
def test_account_reports_requests_that_client_and_log_tell_differently(
    tmp_path: Path, record: dict[str, object], logged: int | None, fault: str | None
) -> None:
    """Each request is a fault unless its client and the service's log agree on an answer."""
    records, log = tmp_path / "records", tmp_path / "log"
    request = {"id": "Mixed-1.1", "path": "/v1/model", "fault": "", "seconds": 0.1, **record}
    records.write_text(json.dumps(request) + "\n")
    line = {"event": "request", "request_id": "Mixed-1.1", "status": logged}
    log.write_text("a line that is not JSON\n" + (json.dumps(line) if logged else "") + os.linesep)
    found = account(records, log)
    assert found.sent == 1
    assert found.outcomes == {record["outcome"]: 1}
    assert (found.faults == ()) if fault is None else (fault in found.faults[0])


def test_disagreement_names_the_difference_and_the_limit() -> None:
    """A comparison of different numbers ends with both sides' relative difference."""
    from benchmarks.agreement import agree

    agree("the norm", torch.ones(3), torch.ones(3))
    with pytest.raises(Disagreement, match=r"the norm differs by 1.0e\+00; the limit is 5.0e-06"):
        agree("the norm", 2 * torch.ones(3), torch.ones(3))
