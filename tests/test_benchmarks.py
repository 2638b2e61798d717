"""Benchmarks: what the table keeps when a workload fails, and how requests are accounted for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from benchmarks.agreement import Disagreement
from benchmarks.bars import TABLE, find_bar
from benchmarks.bench import Bench
from benchmarks.load.account import account
from benchmarks.results import Row
from benchmarks.run import WORKLOADS, measure
from benchmarks.server import Request, Server


def test_failed_workload_keeps_its_rows_and_does_not_end_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows before a failure and those of later workloads are printed and written."""

    def failing(_bench: Bench) -> Iterator[Row]:
        yield Row("W7", "before the failure", "/livez p99", 2.0, "ms")
        raise RuntimeError("refused with 429")

    def working(_bench: Bench) -> Iterator[Row]:
        yield Row("W8", "bundled", "start to ready", 3.0, "s")

    bench = Bench(None, tmp_path, torch.device("cpu"), 0.1, 1)
    workloads = {"W7": failing, "W8": working}
    assert measure(bench, workloads, (), tmp_path / "rows.json") == ["W7"]
    printed = capsys.readouterr()
    assert "before the failure" in printed.out
    assert "refused with 429" in printed.err
    earlier, value, unit, *bar = next(
        line for line in printed.out.splitlines() if line.startswith("W8")
    ).split()[5:10]
    assert (earlier, value, unit, bar) == ("4.2", "3", "s", ["<=", "3.5"])
    written = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["workload"] for row in written] == ["W7", "W8"]


def test_every_bar_belongs_to_a_workload() -> None:
    """The table of bars names existing workloads, and a bar is found by figure and size."""
    assert {workload for _, workload, *_ in TABLE} <= set(WORKLOADS)
    bar = find_bar("cpu", "W1", "seed script / engine", 1024)
    assert bar is not None
    assert bar.reached(3.5) is True
    assert bar.reached(3.4) is False
    assert find_bar("cpu", "W1", "seed script / engine", 23) is None


def test_request_is_sent_again_after_429_with_retry_after() -> None:
    """A busy service delays a request of the benchmark; any other refusal raises."""
    statuses = [429, 429, 200, 422]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(statuses.pop(0))
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            server = Server(process, http.server_port, 0.0)
            assert server.post(Request("/", {})).json == {}
            with pytest.raises(RuntimeError, match="422"):
                server.post(Request("/", {}))
        server.local.connection.close()
        http.shutdown()
        thread.join()


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
