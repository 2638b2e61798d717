"""Sweeps over many pairs: order, resumed files, failed pairs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deltaw_client import (
    ConnectionFailed,
    DeltawClient,
    OtherSweep,
    Sweep,
    Timeout,
    WeightUpdates,
    problems,
    read_sweep,
)
from schemas.common import UNSET
from tests.client.conftest import async_client, problem, scripted
from tests.client.disturbed import Disturbed
from tests.service_process import Served

PAIRS = [([5 + i, 6, 7], [8]) for i in range(40)]
NORMS: dict[str, Any] = {"include": [], "layers": [0]}


def lines(path: Path) -> list[dict[str, Any]]:
    """Read the file as JSON lines."""
    return [json.loads(text) for text in path.read_text().splitlines()]


def model_json(service: Served) -> bytes:
    """Fetch the answer of `/v1/model`."""
    return httpx.get(f"{service.url}/v1/model").content


def test_sweep_equals_single_calls_in_order(client: DeltawClient, tmp_path: Path) -> None:
    """Line i belongs to pair i and holds the numbers of a single call with that pair."""
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
        assert mine.norm == pytest.approx(theirs.norm, rel=1e-5)
        output, other = mine.weights[0].output, theirs.weights[0].output
        assert output is not UNSET
        assert other is not UNSET
        assert np.allclose(output, other, rtol=1e-4, atol=1e-6)
    first = lines(out)[0]
    assert first["request_id"]
    assert first["server_timing"]["forward"] > 0
    assert first["origin"]["weights_digest"] == first["answer"]["model"]["weights_digest"]


def test_each_resource_can_be_swept(client: DeltawClient, tmp_path: Path) -> None:
    """Checks and trajectories can be swept; a pair's own fields come first."""
    pairs = [{"context": [5, 6], "query": [7, 8], "layers": [i]} for i in range(3)]
    checks = client.sweep(
        pairs, out=tmp_path / "c", resource="equivalence_checks", layers="all", controls=False
    )
    assert [line.answer.checks[0].layer for line in checks] == [0, 1, 2]
    assert all(line.answer.holds for line in checks)
    ways = client.sweep(pairs, out=tmp_path / "t", resource="trajectories")
    assert [len(line.answer.layers[0].steps) for line in ways] == [2, 2, 2]


def test_resumed_sweep_keeps_answers_and_repeats_torn_line(
    client: DeltawClient, tmp_path: Path
) -> None:
    """A resumed file keeps its lines byte for byte, and the torn last line is asked again."""
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
def test_file_of_another_sweep_is_refused(
    client: DeltawClient, tmp_path: Path, pairs: Any, parameters: dict[str, Any]
) -> None:
    """A file with other pairs, more pairs or other parameters is refused and not changed."""
    out = tmp_path / "sweep.jsonl"
    client.sweep(PAIRS[:5], out=out, **NORMS)
    before = out.read_bytes()
    with pytest.raises(OtherSweep, match=r"line \d of .*sweep.jsonl"):
        client.sweep(pairs, out=out, **parameters)
    assert out.read_bytes() == before


def test_file_that_is_no_sweep_is_refused(client: DeltawClient, tmp_path: Path) -> None:
    """A file that is not a sweep's is refused and not changed."""
    out = tmp_path / "notes.txt"
    out.write_text("Buy milk.\n")
    with pytest.raises(OtherSweep):
        client.sweep(PAIRS, out=out)
    assert out.read_text() == "Buy milk.\n"


def test_failed_pair_is_asked_again(tiny_folder: Path, tmp_path: Path) -> None:
    """A failed pair's line holds its problem; a resumed sweep replaces it by the answer."""
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


def test_broken_sweep_keeps_the_answers(tiny_service: Served, tmp_path: Path) -> None:
    """A sweep whose connection breaks keeps the answers that came, in order, for the next one."""
    out = tmp_path / "sweep.jsonl"

    def cut(_: int, answers: Iterator[bytes]) -> Iterator[bytes]:
        yield from islice(answers, 10)
        raise httpx.ReadError("cut")

    transport = Disturbed(cut)
    with (
        DeltawClient(tiny_service.url, retries=0, transport=transport) as client,
        pytest.raises(ConnectionFailed),
    ):
        client.sweep(PAIRS, out=out, **NORMS)
    kept = [line["index"] for line in lines(out)]
    assert kept == sorted(kept)
    assert len(kept) == 10
    with DeltawClient(tiny_service.url) as client:
        assert client.sweep(PAIRS, out=out, **NORMS) == Sweep(out, 40, 40, 0, 10)
    assert [line["index"] for line in lines(out)] == list(range(40))


def test_cancelled_sweep_keeps_the_answers(tiny_folder: Path, tmp_path: Path) -> None:
    """A sweep in process that is cancelled keeps each answer that came before, in order."""
    out = tmp_path / "sweep.jsonl"
    pairs = [([5 + i % 40, i // 40], [8]) for i in range(600)]

    async def cancelled() -> None:
        async with async_client(tiny_folder) as client:
            sweep = asyncio.create_task(client.sweep(pairs, out=out, **NORMS))
            while not (out.exists() and len(out.read_bytes().splitlines()) > 5):
                await asyncio.sleep(0.01)
            sweep.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sweep

    asyncio.run(cancelled())
    kept = [line["index"] for line in lines(out)]
    assert kept == sorted(kept)
    assert 5 < len(kept) < 600


def test_killed_sweep_is_put_in_order(client: DeltawClient, tmp_path: Path) -> None:
    """A file with lines out of order and a pair twice is in order after the next sweep."""
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


def test_timed_out_pair_has_a_line(tiny_service: Served, tmp_path: Path) -> None:
    """A pair whose deadline passes has a line with the timeout."""
    busy = problem("queue_full", Retry_After="0")
    loaded = 200, {"Content-Type": "application/json"}, model_json(tiny_service)
    with (
        scripted(loaded, busy, loaded) as service,
        DeltawClient(service.url, retries=0) as client,
    ):
        swept = client.sweep(PAIRS[:2], out=tmp_path / "a", concurrency=1)
        assert [type(line.error) for line in swept] == [problems.QueueFull] * 2
        swept = client.sweep(PAIRS[:2], out=tmp_path / "b", deadline_seconds=1e-9)
        assert [type(line.error) for line in swept] == [Timeout] * 2
        assert (swept.answered, swept.failed) == (0, 2)


def test_wrong_key_ends_the_sweep(tiny_folder: Path, tmp_path: Path) -> None:
    """A problem that every pair would have ends the sweep at once."""
    out = tmp_path / "sweep.jsonl"

    async def sweep() -> None:
        async with async_client(tiny_folder, api_keys="open-sesame") as client:
            await client.sweep(PAIRS, out=out)

    with pytest.raises(problems.MissingKey):
        asyncio.run(sweep())
    assert not out.exists()


def test_unknown_field_makes_no_file(client: DeltawClient, tmp_path: Path) -> None:
    """A field that the resource does not have raises TypeError before the file is opened."""
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


def test_progress_bar_is_drawn_only_on_a_terminal(tiny_service: Served, tmp_path: Path) -> None:
    """Standard error shows a bar if it is a terminal, and nothing otherwise."""
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
