"""Faults of a service that stores adapters, made by real means: SIGKILL, a full disk, a client that
leaves."""

from __future__ import annotations

import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from schemas.adapters import FILES, Adapter, AdaptersAnswer
from schemas.common import read_answer
from service.adapters.disk import NEW
from service.adapters.store import Store
from service.engine import Model, load
from tests.api.wire import client_of, metric, problem, until
from tests.checkpoints import save_tiny
from tests.service_process import Served, served

pytestmark = pytest.mark.slow

ADAPTERS = "/v1/adapters"
CHECKS = "/v1/equivalence-checks"
KEPT = {"kind": "token", "context": "kept before", "query": " cd"}
TRIES = 40


def body(number: int, tokens: int = 8) -> dict[str, Any]:
    """A request whose adapter differs for each number."""
    context = [1 + (number // 250**i + 7 * i) % 250 for i in range(tokens)]
    return {"kind": "token", "context": context, "query": [3, 4], "positions": [0]}


def drafts(folder: Path) -> list[Path]:
    """Folders that are being written."""
    return [*folder.glob(f"{NEW}*")]


def require_whole(client: httpx.Client, folder: Path, model: Model) -> list[str]:
    """Require that each listed adapter is whole and nothing else lies in the folder.

    Returns:
        The ids.
    """
    listed = read_answer(AdaptersAnswer, client.get(ADAPTERS).content)
    ids = sorted(entry.id for entry in listed.adapters)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", *ids]
    store = Store(folder, 1 << 40)
    for one in ids:
        assert store.load(model, one).updates
        for name in FILES:
            assert client.get(f"{ADAPTERS}/{one}/{name}").is_success
    return ids


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose adapters take a second to make and some milliseconds to write."""
    with torch.inference_mode(False):
        folder = tmp_path_factory.mktemp("wide")
        return save_tiny(folder, n_layer=8, n_embd=512, n_head=8, n_positions=1024)


@pytest.fixture(scope="module")
def wide(wide_folder: Path) -> Model:
    """The same model in this process."""
    return load(str(wide_folder), revision=None, device="cpu", dtype="float32")


def kill_while_writing(running: Served, folder: Path, number: int) -> bool:
    """Ask for an adapter, and kill the service once its files are being written.

    Returns:
        Whether it left a draft.
    """
    with client_of(running) as client, ThreadPoolExecutor(1) as pool:
        kept = client.post(ADAPTERS, json=KEPT).raise_for_status().json()
        asked = pool.submit(client.post, ADAPTERS, json=body(number))
        end = time.monotonic() + 60.0
        while not drafts(folder) and not asked.done() and time.monotonic() < end:
            pass
        running.process.kill()
        running.process.wait(60.0)
        assert kept["id"] in {path.name for path in folder.iterdir()}
        if not asked.exception(60.0):
            assert asked.result().json()["id"] in {path.name for path in folder.iterdir()}
    return bool(drafts(folder))


def test_sigkill_while_writing_leaves_nothing_half_written(
    wide_folder: Path, wide: Model, tmp_path: Path
) -> None:
    """SIGKILL in the middle of a write: after a restart what was there is whole, the draft is gone,
    and the same request makes the adapter."""
    folder = tmp_path / "adapters"
    for number in range(TRIES):
        with served(model=wide_folder, adapters=folder) as running:
            if kill_while_writing(running, folder, number):
                break
    else:
        raise AssertionError("no draft was left: the service was never killed while it wrote")
    with served(model=wide_folder, adapters=folder) as running, client_of(running) as client:
        assert drafts(folder) == []
        before = require_whole(client, folder, wide)
        made = read_answer(Adapter, client.post(ADAPTERS, json=body(number)).content)
        assert made.id not in before
        assert require_whole(client, folder, wide) == sorted([*before, made.id])


def test_sigkill_while_fitting_leaves_nothing(wide_folder: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a fit: nothing is listed but what was there."""
    folder = tmp_path / "adapters"
    with (
        served(model=wide_folder, adapters=folder, threads=1) as running,
        client_of(running) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        kept = client.post(ADAPTERS, json=KEPT).raise_for_status().json()
        before = metric(client, "deltaw_forward_seconds_count")
        asked = pool.submit(client.post, ADAPTERS, json=body(1, tokens=900))
        until(lambda: metric(client, "deltaw_forward_seconds_count") > before or None, 60.0)
        assert not asked.done()
        running.process.kill()
        with pytest.raises(httpx.TransportError):
            asked.result(60.0)
    with served(model=wide_folder, adapters=folder) as running, client_of(running) as client:
        assert [one["id"] for one in client.get(ADAPTERS).json()["adapters"]] == [kept["id"]]
        assert sorted(path.name for path in folder.iterdir()) == [".lock", kept["id"]]
        assert client.get(f"{ADAPTERS}/{kept['id']}").json() == kept


def test_full_disk_is_one_problem_and_leaves_the_store_whole(
    wide_folder: Path, wide: Model, tmp_path: Path
) -> None:
    """Where a file cannot grow, the answer is 507, nothing is listed or left, and other resources
    answer. With room again, the same request makes the adapter."""
    folder = tmp_path / "adapters"
    with served(model=wide_folder, adapters=folder) as running, client_of(running) as client:
        client.post(ADAPTERS, json=KEPT).raise_for_status()
        before = require_whole(client, folder, wide)
        pid, room = running.process.pid, resource.RLIM_INFINITY
        for limit in (0, 100, 50_000):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, room))
            sent = body(limit)
            said = problem(client.post(ADAPTERS, json=sent), "storage_full", sent)
            assert "full" in said.detail
            assert require_whole(client, folder, wide) == before
            checked = client.post(CHECKS, json={"context": "abc", "query": " cd"})
            assert checked.json()["holds"] is True
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, room))
        client.post(ADAPTERS, json=sent).raise_for_status()
        assert len(require_whole(client, folder, wide)) == len(before) + 1


def test_fit_ends_when_the_last_client_leaves(wide_folder: Path, tmp_path: Path) -> None:
    """Two clients wait for one adapter. When one leaves, the other gets it. When both leave,
    the fit ends and nothing is stored."""
    folder = tmp_path / "adapters"
    with (
        served(model=wide_folder, adapters=folder, threads=1) as running,
        client_of(running) as client,
        ThreadPoolExecutor(2) as pool,
    ):

        def ask(number: int, seconds: float) -> httpx.Response | None:
            try:
                with httpx.Client(base_url=running.url, timeout=seconds) as own:
                    return own.post(ADAPTERS, json=body(number, tokens=900))
            except httpx.ReadTimeout:
                return None

        client.post(ADAPTERS, json=KEPT).raise_for_status()
        start = time.monotonic()
        client.post(ADAPTERS, json=body(0, tokens=900)).raise_for_status()
        took = time.monotonic() - start
        impatient, patient = pool.submit(ask, 1, took / 4), pool.submit(ask, 1, 120.0)
        assert impatient.result() is None
        answer = patient.result()
        assert answer is not None
        assert answer.is_success
        stored = len(client.get(ADAPTERS).json()["adapters"])
        both = [pool.submit(ask, 2, took / 4) for _ in range(2)]
        assert [one.result() for one in both] == [None, None]
        # The engine answers at once, since the fit no longer runs.
        client.post(CHECKS, json={"context": "abc", "query": " cd"}).raise_for_status()
        time.sleep(2 * took)
        assert len(client.get(ADAPTERS).json()["adapters"]) == stored
        assert running.log.read_text().count('"status": 499') == 3


def test_two_services_share_a_folder(tiny_folder: Path, tmp_path: Path) -> None:
    """Two services with one folder that are asked for the same adapters at once make each of them
    once, and both list all."""
    folder = tmp_path / "adapters"
    with (
        served(model=tiny_folder, adapters=folder) as one,
        served(model=tiny_folder, adapters=folder) as other,
        ThreadPoolExecutor(8) as pool,
        client_of(one) as first,
        client_of(other) as second,
    ):
        asked = [
            pool.submit(client.post, ADAPTERS, json=body(number))
            for number in range(20)
            for client in (first, second)
        ]
        answers = [each.result(60.0).raise_for_status().json() for each in asked]
        ids = {answer["id"] for answer in answers}
        assert len(ids) == 20
        for client in (first, second):
            listed = client.get(ADAPTERS).json()["adapters"]
            assert {entry["id"] for entry in listed} == ids
        assert sorted(path.name for path in folder.iterdir()) == [".lock", *sorted(ids)]
