"""A sweep's file holds the answers of one model and one version of the software only."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from deltaw_client import ConnectionFailed, DeltawClient, OtherSweep, Sweep
from tests.checkpoints import save_tiny
from tests.client.conftest import async_client
from tests.client.disturbed import Disturbed
from tests.service_process import Served, free_port, served

PAIRS = [([5 + i, 6, 7], [8]) for i in range(6)]
NORMS: dict[str, Any] = {"include": [], "layers": [0]}


@pytest.fixture(scope="module")
def other_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with other weights."""
    with served(model=save_tiny(tmp_path_factory.mktemp("other") / "tiny", seed=1)) as running:
        yield running


def first_line(client: DeltawClient, out: Path) -> bytes:
    """Sweep, and leave only the first line in the file."""
    client.sweep(PAIRS, out=out, **NORMS)
    line = out.read_bytes().splitlines(keepends=True)[0]
    out.write_bytes(line)
    return line


@pytest.mark.slow
def test_resuming_with_other_weights_is_refused(
    client: DeltawClient, other_service: Served, tmp_path: Path
) -> None:
    """A file with one model's answers is refused with another's, names both digests, and stays."""
    out = tmp_path / "sweep.jsonl"
    line = first_line(client, out)
    digest = json.loads(line)["origin"]["weights_digest"]
    with DeltawClient(other_service.url) as other:
        now = other.model().model.weights_digest
        with pytest.raises(OtherSweep, match=r"line 1 of .*sweep.jsonl") as raised:
            other.sweep(PAIRS, out=out, **NORMS)
    assert digest != now
    assert f"weights_digest {digest} (the service: {now})" in str(raised.value)
    assert out.read_bytes() == line
    assert client.sweep(PAIRS, out=out, **NORMS) == Sweep(out, 6, 6, 0, 1)


def test_resuming_with_another_dtype_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """The same weights in another dtype give other numbers, so the file is refused."""
    out = tmp_path / "sweep.jsonl"

    async def sweep(dtype: str) -> Sweep:
        async with async_client(tiny_folder, dtype=dtype) as client:
            return await client.sweep(PAIRS, out=out, **NORMS)

    asyncio.run(sweep("float32"))
    with pytest.raises(OtherSweep, match=r"dtype float32 \(the service: bfloat16\)") as raised:
        asyncio.run(sweep("bfloat16"))
    assert "weights_digest" not in str(raised.value)


def test_resuming_with_another_configuration_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """The same weights under another activation function give other numbers."""
    out = tmp_path / "sweep.jsonl"
    other = tmp_path / "other" / tiny_folder.name
    shutil.copytree(tiny_folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"activation_function": "relu"}))

    async def sweep(folder: Path) -> Sweep:
        async with async_client(folder) as client:
            return await client.sweep(PAIRS, out=out, **NORMS)

    asyncio.run(sweep(tiny_folder))
    with pytest.raises(OtherSweep, match="another origin: config sha256:") as raised:
        asyncio.run(sweep(other))
    assert "weights_digest" not in str(raised.value)


@pytest.mark.parametrize(
    "name", ["torch", "service", "transformers", "device", "config", "tokenizer"]
)
def test_resuming_with_another_version_is_refused(
    client: DeltawClient, tmp_path: Path, name: str
) -> None:
    """The error names the one field of the origin that differs."""
    out = tmp_path / "sweep.jsonl"
    line = json.loads(first_line(client, out))
    line["origin"][name] = "another"
    out.write_text(json.dumps(line) + "\n")
    with pytest.raises(OtherSweep, match=rf"origin: {name} another \(the service: [^,]*\);"):
        client.sweep(PAIRS, out=out, **NORMS)


def test_failed_line_of_another_model_is_asked_again(client: DeltawClient, tmp_path: Path) -> None:
    """A line without numbers does not bind the file to the model that failed."""
    out = tmp_path / "sweep.jsonl"
    line = json.loads(first_line(client, out))
    del line["answer"]
    line["origin"]["weights_digest"] = "another"
    out.write_text(json.dumps(line | {"timeout": "late"}) + "\n")
    assert client.sweep(PAIRS, out=out, **NORMS) == Sweep(out, 6, 6, 0, 0)


@pytest.mark.slow
def test_model_exchanged_during_a_sweep_ends_it(
    tiny_service: Served, other_service: Served, tmp_path: Path
) -> None:
    """The sweep stops at the first answer of another model; the file has only the first one's."""
    out = tmp_path / "sweep.jsonl"

    def cut(number: int, answers: Iterator[bytes]) -> Iterator[bytes]:
        yield from answers if number else islice(answers, 2)

    transport = Disturbed(cut, then=other_service.url)
    with DeltawClient(tiny_service.url, transport=transport) as client:
        digest = client.model().model.weights_digest
        with pytest.raises(OtherSweep, match=r"model changed during the sweep: .*weights_digest"):
            client.sweep(PAIRS, out=out, **NORMS)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 2
    assert {line["answer"]["model"]["weights_digest"] for line in lines} == {digest}


def test_sweep_without_a_service_makes_no_file(tmp_path: Path) -> None:
    """A sweep asks for the model first, so it fails before it opens a file."""
    out = tmp_path / "sweep.jsonl"
    url = f"http://127.0.0.1:{free_port()}"
    with DeltawClient(url, retries=0) as client, pytest.raises(ConnectionFailed):
        client.sweep(PAIRS, out=out)
    assert not out.exists()
