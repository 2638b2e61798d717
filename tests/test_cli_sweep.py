"""`deltaw sweep`: its file, what it resumes, its exit codes, and the transport in process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from deltaw_client import read_sweep
from service.cli import app
from service.cli.transport import InProcessTransport
from tests.service_process import Served
from tests.test_cli_commands import deltaw

PAIRS = '{"context": "the abc cd", "query": " the"}\n\n["the abc", " the"]\n'


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    """A file of two pairs."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(PAIRS)
    return str(path)


def test_sweep_writes_a_line_for_each_pair(
    tiny_service: Served, tmp_path: Path, pairs: str
) -> None:
    """The options apply to each pair; a second sweep keeps the answers."""
    out = tmp_path / "out.jsonl"
    asked: tuple[str, ...] = ("sweep", pairs, "--out", str(out), "--url", tiny_service.url)
    asked += ("--layers", "0,-1", "--include", "bias", "--baseline", "alone")
    ended = deltaw(*asked)
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert f"in {out}" in ended.stdout
    lines = list(read_sweep(out))
    assert [line.pair["context"] for line in lines] == ["the abc cd", "the abc"]
    for line in lines:
        assert [update.layer for update in line.answer.updates] == [0, 2]
        assert line.answer.baseline == "alone"
        assert line.answer.updates[0].bias
    counts = {"pairs": 2, "answered": 2, "failed": 0, "kept": 2}
    assert json.loads(deltaw(*asked, "--json").stdout) == {"path": str(out), **counts}


def test_sweep_reads_standard_input(tiny_service: Served, tmp_path: Path) -> None:
    """`-` reads the pairs from standard input; an option gives what they all share."""
    out = tmp_path / "out.jsonl"
    asked = ["sweep", "-", "--out", str(out), "--url", tiny_service.url, "--query", " the"]
    ended = CliRunner().invoke(app, asked, input='{"context": "cd"}\n{"context": "abc"}')
    assert ended.exit_code == 0, ended.output
    assert [line.pair for line in read_sweep(out)] == [{"context": "cd"}, {"context": "abc"}]


def test_pair_without_an_answer_exits_with_3(tiny_service: Served, tmp_path: Path) -> None:
    """The exit code is 3 if a pair failed; the table names the problem and the first pair."""
    path, out = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    path.write_text(PAIRS + '["the", ""]\n["", ""]\n["cd", ""]\n')
    ended = deltaw("sweep", str(path), "--out", str(out), "--url", tiny_service.url)
    assert ended.exit_code == 3
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert ["│", "empty_query", "│", "2", "│", "2", "│"] in rows
    assert len([line for line in read_sweep(out) if line.error is not None]) == 3


def test_check_that_does_not_hold_exits_with_1(
    tiny_service: Served, tmp_path: Path, pairs: str
) -> None:
    """The exit code of a sweep of checks is 1 if one does not hold."""
    asked = ("sweep", pairs, "--resource", "equivalence_checks", "--url", tiny_service.url)
    held = deltaw(*asked, "--out", str(tmp_path / "a"), "--no-controls")
    assert held.exit_code == 0
    failed = deltaw(*asked, "--out", str(tmp_path / "b"), "--tolerance", "1e-12")
    assert failed.exit_code == 1


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("{", (), "line 1: "),
        (PAIRS + "7\n", (), "line 4: give an object"),
        ('["one"]\n', (), "line 1: "),
        (PAIRS + '{"context": "a", "query": "b", "layer": 1}', (), "'layer'"),
        ('{"context": "a"}', (), "'query'"),
        ("\xff", (), "line 1: "),
        (PAIRS, ("--spans", "0:1"), "weight_updates has no such option"),
        (PAIRS, ("--concurrency", "0"), "concurrency"),
        (PAIRS, ("--resource", "tokenize"), "resource"),
    ],
)
def test_wrong_file_or_option_exits_with_2(
    tmp_path: Path, text: str, options: tuple[str, ...], said: str
) -> None:
    """A wrong line or option is named before anything is sent, and makes no file."""
    path, out = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(text.encode("latin-1"))
    ended = deltaw("sweep", str(path), "--out", str(out), "--url", "http://127.0.0.1:1", *options)
    assert ended.exit_code == 2
    assert said in ended.stderr
    assert not out.exists()


def test_sweep_in_process(tiny_folder: Path, tmp_path: Path, pairs: str) -> None:
    """Without --url the sweep computes in this process."""
    out = tmp_path / "out.jsonl"
    ended = deltaw("sweep", pairs, "--out", str(out), "--model", str(tiny_folder))
    assert ended.exit_code == 0, ended.output
    assert [line.index for line in read_sweep(out)] == [0, 1]


def test_transport_gives_each_piece_when_it_is_sent() -> None:
    """A piece arrives before the application sends the next one; leaving disconnects it."""
    taken = asyncio.Event()
    left = []

    async def app(
        scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        asked = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        if scope["path"] == "/fails":
            raise LookupError("of the application")
        await send({"type": "http.response.body", "body": asked["body"], "more_body": True})
        await taken.wait()
        await send({"type": "http.response.body", "body": scope["query_string"]})
        left.append((await receive())["type"])

    async def ask() -> None:
        transport = InProcessTransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            async with client.stream("POST", "/path?x=1", content=b"body") as response:
                pieces = response.aiter_bytes()
                assert (response.headers["a"], await anext(pieces)) == ("b", b"body")
                taken.set()
                assert [piece async for piece in pieces] == [b"x=1"]
            assert left == ["http.disconnect"]
            with pytest.raises(LookupError):
                await client.get("/fails")

    asyncio.run(ask())
