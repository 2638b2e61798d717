"""Sweeps over many pairs: order, files that are gone on with, failures that are kept."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltaw_client import (
    ConnectionFailed,
    DeltawClient,
    JointUpdates,
    OtherSweep,
    Sweep,
    Timeout,
    WeightUpdates,
    problems,
    read_sweep,
)
from tests.client.conftest import async_client, problem, scripted
from tests.service_process import Served, free_port

PAIRS = [([5 + i, 6, 7], [8]) for i in range(40)]
NORMS: dict[str, Any] = {"include": [], "layers": [0]}


def lines(path: Path) -> list[dict[str, Any]]:
    """The file as JSON."""
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_as_asked_one_by_one(client: DeltawClient, tmp_path: Path) -> None:
    """Each pair's line stands at its place and holds what asking that pair alone gives."""
    out = tmp_path / "sweep.jsonl"
    swept = client.sweep(PAIRS, out=out, concurrency=4, layers=[0])
    assert swept == Sweep(out, 40, 40, 0, 0)
    assert [line["index"] for line in lines(out)] == list(range(40))
    for line, (context, query) in zip(swept, PAIRS, strict=True):
        assert line.pair == {"context": context, "query": query}
        assert line.error is None
        assert isinstance(line.answer, WeightUpdates)
        (mine,) = line.answer.updates
        (theirs,) = client.weight_updates(context, query, layers=[0]).updates
        assert mine.factors
        assert theirs.factors
        assert mine.norm == pytest.approx(theirs.norm, rel=1e-5)
        assert np.allclose(mine.factors.output, theirs.factors.output, rtol=1e-4, atol=1e-6)
    first = lines(out)[0]
    assert first["request_id"]
    assert first["server_timing"]["forward"] > 0


def test_other_resources(client: DeltawClient, tmp_path: Path) -> None:
    """Checks, trajectories and joint updates can be swept; a mapping's fields are its own."""
    pairs = [{"context": [5, 6], "query": [7, 8], "layers": [i]} for i in range(3)]
    checks = client.sweep(
        pairs, out=tmp_path / "c", resource="equivalence_checks", layers="all", controls=False
    )
    assert [line.answer.checks[0].layer for line in checks] == [0, 1, 2]
    assert all(line.answer.holds for line in checks)
    ways = client.sweep(pairs, out=tmp_path / "t", resource="trajectories")
    assert [len(line.answer.layers[0].steps) for line in ways] == [2, 2, 2]
    joint = client.sweep(pairs, out=tmp_path / "j", joint=True, positions="all")
    assert all(isinstance(line.answer, JointUpdates) for line in joint)


def test_goes_on(client: DeltawClient, tmp_path: Path) -> None:
    """A file with some lines and a torn one is gone on with: its answers are left as they are,
    the torn one is asked again, and the whole is what one sweep gives."""
    out = tmp_path / "sweep.jsonl"
    client.sweep(PAIRS, out=out, **NORMS)
    whole = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(whole[:10]) + whole[10][:-20])
    swept = client.sweep(PAIRS, out=out, **NORMS)
    assert swept == Sweep(out, 40, 40, 0, 10)
    again = out.read_bytes().splitlines(keepends=True)
    assert again[:10] == whole[:10]
    assert [line["index"] for line in lines(out)] == list(range(40))
    (mine,), (theirs,) = (json.loads(text)["answer"]["updates"] for text in (again[10], whole[10]))
    assert mine["norm"] == pytest.approx(theirs["norm"], rel=1e-5)
    assert client.sweep(PAIRS, out=out, **NORMS).kept == 40
    assert out.read_bytes() == b"".join(again)


@pytest.mark.parametrize(
    ("pairs", "parameters"),
    [
        (PAIRS[1:], NORMS),
        (PAIRS[:3], NORMS),
        (PAIRS, {**NORMS, "layers": [1]}),
        (PAIRS, {**NORMS, "baseline": "alone"}),
    ],
)
def test_of_another_sweep(
    client: DeltawClient, tmp_path: Path, pairs: Any, parameters: dict[str, Any]
) -> None:
    """A file of other pairs, of more pairs or of other parameters is refused and left alone."""
    out = tmp_path / "sweep.jsonl"
    client.sweep(PAIRS[:5], out=out, **NORMS)
    before = out.read_bytes()
    with pytest.raises(OtherSweep, match=r"line \d of .*sweep.jsonl"):
        client.sweep(pairs, out=out, **parameters)
    assert out.read_bytes() == before


def test_not_a_sweep(client: DeltawClient, tmp_path: Path) -> None:
    """A file that is something else is refused and left alone."""
    out = tmp_path / "notes.txt"
    out.write_text("Buy milk.\n")
    with pytest.raises(OtherSweep):
        client.sweep(PAIRS, out=out)
    assert out.read_text() == "Buy milk.\n"


def test_failures(tiny_folder: Path, tmp_path: Path) -> None:
    """A pair that fails has a line with its problem; it is asked again when the sweep goes on, and
    its answer takes that line's place."""
    out = tmp_path / "sweep.jsonl"
    pairs = [([5] * 30, [6]) if i in (0, 3) else pair for i, pair in enumerate(PAIRS[:6])]

    async def sweep(**settings: Any) -> Sweep:
        async with async_client(tiny_folder, **settings) as client:
            return await client.sweep(pairs, out=out, concurrency=2, **NORMS)

    assert asyncio.run(sweep(max_tokens_per_request=20)) == Sweep(out, 6, 4, 2, 0)
    errors = [line.error for line in read_sweep(out)]
    assert [type(error) for error in errors] == [
        problems.NeverFits if i in (0, 3) else type(None) for i in range(6)
    ]
    assert isinstance(errors[0], problems.NeverFits)
    assert (errors[0].limit, errors[0].actual) == (20, 32)
    assert asyncio.run(sweep()) == Sweep(out, 6, 6, 0, 4)
    assert [line["index"] for line in lines(out)] == list(range(6))
    assert all(line.answer is not None for line in read_sweep(out))
    assert list(tmp_path.iterdir()) == [out]


def test_killed_while_asking_again(client: DeltawClient, tmp_path: Path) -> None:
    """A sweep that was killed with lines out of order, some said twice, ends in order and whole."""
    out = tmp_path / "sweep.jsonl"
    client.sweep(PAIRS[:6], out=out, **NORMS)
    whole = out.read_bytes().splitlines(keepends=True)
    failed = json.loads(whole[1])
    del failed["answer"]
    text = json.dumps(failed | {"timeout": "late"}).encode() + b"\n"
    out.write_bytes(b"".join([whole[0], text, *whole[2:5], whole[1]]))
    swept = client.sweep(PAIRS[:6], out=out, **NORMS)
    assert (swept.kept, swept.answered) == (5, 6)
    assert out.read_bytes().splitlines(keepends=True)[:5] == whole[:5]
    assert [line["index"] for line in lines(out)] == list(range(6))


def test_timeout_is_kept(tmp_path: Path) -> None:
    """A pair whose deadline passes has a line that says so."""
    busy = problem("queue_full", Retry_After="0")
    with scripted(busy) as service, DeltawClient(service.url, retries=0) as client:
        swept = client.sweep(PAIRS[:2], out=tmp_path / "a", concurrency=1)
        assert [type(line.error) for line in swept] == [problems.QueueFull] * 2
        swept = client.sweep(PAIRS[:2], out=tmp_path / "b", deadline_seconds=1e-9)
        assert [type(line.error) for line in swept] == [Timeout] * 2
        assert (swept.answered, swept.failed) == (0, 2)


def test_no_way_in(tiny_folder: Path, tmp_path: Path) -> None:
    """Where no pair can fare better the sweep ends with that error, and has lost nothing."""
    out = tmp_path / "sweep.jsonl"

    async def sweep() -> None:
        async with async_client(tiny_folder, api_keys="open-sesame") as client:
            await client.sweep(PAIRS, out=out)

    with pytest.raises(problems.MissingKey):
        asyncio.run(sweep())
    with (
        DeltawClient(f"http://127.0.0.1:{free_port()}", retries=0) as client,
        pytest.raises(ConnectionFailed),
    ):
        client.sweep(PAIRS, out=out)
    assert out.read_bytes() == b""


def test_unknown_field(client: DeltawClient, tmp_path: Path) -> None:
    """A field that the resource does not have is refused before there is a file."""
    out = tmp_path / "sweep.jsonl"
    with pytest.raises(TypeError, match="layer"):
        client.sweep(PAIRS, out=out, layer=1)
    assert not out.exists()


SCRIPT = """
import sys
from deltaw_client import DeltawClient
with DeltawClient(sys.argv[1]) as client:
    print(client.sweep([([5, 6], [7])] * 30, out=sys.argv[2], include=[]).answered)
"""


def test_bar_on_a_terminal(tiny_service: Served, tmp_path: Path) -> None:
    """A bar is drawn on a terminal, and nothing where standard error is none."""
    command = [sys.executable, "-c", SCRIPT, tiny_service.url]
    quiet = subprocess.run([*command, str(tmp_path / "a")], capture_output=True, text=True)
    assert (quiet.stdout, quiet.stderr) == ("30\n", "")
    reader, terminal = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    subprocess.run(
        [*command, str(tmp_path / "b")], stdout=subprocess.PIPE, stderr=terminal, env=environment
    )
    drawn = os.read(reader, 1 << 16).decode()
    os.close(terminal)
    os.close(reader)
    assert "30/30" in drawn
