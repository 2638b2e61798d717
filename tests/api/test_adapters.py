"""`/v1/adapters` over real HTTP: make, list, fetch, use and delete."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
import pytest

from schemas.adapters import FILES, Adapter, AdaptersAnswer, TokenAdapterRequest
from schemas.common import read_answer
from service.adapters.verify import verify_peft
from service.settings import Settings
from tests.api.conftest import Heard
from tests.api.wire import CANARY, metric, problem
from tests.checkpoints import save_tiny
from tests.conftest import app_client

ADAPTERS = "/v1/adapters"
CHECKS = "/v1/equivalence-checks"
PAIR: dict[str, Any] = {"context": f"abc the {CANARY}", "query": " cd"}
BODY: dict[str, Any] = {"kind": "token", **PAIR}
UNKNOWN = "0" * 32
EXACT = 5e-6


@pytest.fixture(scope="module")
def made(tiny_heard: Heard) -> Adapter:
    """A token adapter on the tiny server."""
    answer = tiny_heard.client.post(ADAPTERS, json=BODY)
    assert answer.status_code == 200, answer.text
    return read_answer(Adapter, answer.content)


def test_same_request_gives_the_same_adapter(tiny_client: httpx.Client, made: Adapter) -> None:
    """The id depends on the request alone. A second one, whatever its name, returns the first."""
    for changes in ({}, {"name": "another name"}, {"baseline": "matched", "form": "bias"}):
        again = tiny_client.post(ADAPTERS, json=BODY | changes).raise_for_status()
        assert read_answer(Adapter, again.content) == made
    other = tiny_client.post(ADAPTERS, json=BODY | {"query": " ce"}).json()
    assert other["id"] != made.id


def test_answer_describes_the_adapter(made: Adapter) -> None:
    """A token adapter is exact, its written file reproduces the run with context, and it has one
    entry per layer."""
    assert (made.kind, made.exact, made.form, made.baseline) == ("token", True, "bias", "matched")
    assert made.verified <= EXACT
    assert [layer.layer for layer in made.layers] == [0, 1, 2]
    assert all(layer.norm > 0 and layer.kept_energy is None for layer in made.layers)
    assert tuple(made.files) == FILES
    assert made.peft_only  # vLLM loads no bias
    assert made.model.weights_digest.startswith("sha256:")
    assert made.created.endswith("Z")


def test_adapter_is_listed_and_described(tiny_client: httpx.Client, made: Adapter) -> None:
    """The list has its entry, and its own resource what was answered when it was made."""
    listed = read_answer(AdaptersAnswer, tiny_client.get(ADAPTERS).content)
    (entry,) = [one for one in listed.adapters if one.id == made.id]
    assert (entry.kind, entry.bytes, entry.usable) == (made.kind, made.bytes, True)
    assert made.bytes < listed.bytes < listed.limit_bytes
    assert read_answer(Adapter, tiny_client.get(f"{ADAPTERS}/{made.id}").content) == made


@pytest.mark.parametrize(
    ("name", "media"),
    [
        ("adapter_config.json", "application/json"),
        ("adapter_model.safetensors", "application/vnd.safetensors"),
        ("adapter.zip", "application/zip"),
    ],
)
def test_files_have_their_headers(
    tiny_client: httpx.Client, made: Adapter, name: str, media: str
) -> None:
    """A file has its media type, length, name and entity tag. HEAD has the same without the file,
    and a client that has it gets 304."""
    path = f"{ADAPTERS}/{made.id}/{name}"
    answer = tiny_client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == media
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert answer.headers["cache-control"] == "private, no-cache"
    head = tiny_client.head(path)
    assert head.content == b""
    own = ("x-request-id", "date")
    assert {k: v for k, v in head.headers.items() if k not in own} == {
        k: v for k, v in answer.headers.items() if k not in own
    }
    tag = answer.headers["etag"]
    same = tiny_client.get(path, headers={"If-None-Match": f'"x", {tag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    assert tiny_client.get(path, headers={"If-None-Match": "*"}).status_code == 304
    assert tiny_client.get(path, headers={"If-None-Match": '"x"'}).status_code == 200


def test_fetched_archive_is_exact_in_peft(
    tiny_client: httpx.Client, tiny_folder: Path, made: Adapter, tmp_path: Path
) -> None:
    """The archive, unpacked, is a folder that PEFT loads, and it gives the run with context."""
    content = tiny_client.get(f"{ADAPTERS}/{made.id}/adapter.zip").content
    with ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) == made.bytes
    body = TokenAdapterRequest.model_validate(BODY)
    found = verify_peft(str(tiny_folder), None, tmp_path, body, made.model.weights_digest)
    assert found.loaded <= EXACT
    assert found.without > 1e-2


def test_equivalence_check_applies_the_stored_adapter(
    tiny_client: httpx.Client, made: Adapter
) -> None:
    """The check in scope `model` under the stored adapter holds for its own context and query."""
    asked = {**PAIR, "scope": "model", "patch": {"adapter": made.id}}
    answer = tiny_client.post(CHECKS, json=asked).raise_for_status().json()
    assert answer["holds"] is True
    assert answer["adapter"] == made.id
    refused = tiny_client.post(CHECKS, json=asked | {"query": " ce"})
    problem(refused, "not_supported", asked)
    unknown = asked | {"patch": {"adapter": UNKNOWN}}
    problem(tiny_client.post(CHECKS, json=unknown), "unknown_adapter", unknown)


def test_deleted_adapter_is_unknown(tiny_client: httpx.Client) -> None:
    """DELETE answers 204 without a body. After it the adapter is unknown everywhere."""
    path = f"{ADAPTERS}/{tiny_client.post(ADAPTERS, json=BODY | {'query': 'zz'}).json()['id']}"
    gone = tiny_client.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    problem(tiny_client.get(path), "unknown_adapter")
    problem(tiny_client.delete(path), "unknown_adapter")
    for name in FILES:
        problem(tiny_client.get(f"{path}/{name}"), "unknown_adapter")
    stale = {"If-None-Match": f'W/"{path.rpartition("/")[2]}"'}
    problem(tiny_client.get(f"{path}/{FILES[0]}", headers=stale), "unknown_adapter")


@pytest.mark.parametrize(
    "path",
    [
        f"/{UNKNOWN}",
        f"/{UNKNOWN}/adapter_config.json",
        "/%2e%2e",
        "/%2e%2e/adapter_config.json",
        "/..%2f..%2fetc%2fpasswd",
        "/.lock",
        f"/{'A' * 32}",
        "/%00",
        "/" + "0" * 5000,
    ],
)
def test_unknown_ids_return_404(tiny_heard: Heard, path: str) -> None:
    """An id that no adapter has returns 404, whatever it spells, and is not repeated."""
    url = httpx.URL(tiny_heard.served.url, raw_path=f"{ADAPTERS}{path}".encode())
    with httpx.Client() as client:
        answer = client.send(client.build_request("GET", url))
    assert answer.status_code == 404
    assert answer.json()["code"] in ("unknown_adapter", "not_found")
    assert "passwd" not in answer.text


@pytest.mark.parametrize("name", ["x", "adapter.json", "%2e%2e", "%2e%2e%2f.lock", ""])
def test_unknown_files_return_404(tiny_heard: Heard, made: Adapter, name: str) -> None:
    """Only the three files of an adapter are served: not its record, and nothing beside it."""
    url = httpx.URL(tiny_heard.served.url, raw_path=f"{ADAPTERS}/{made.id}/{name}".encode())
    with httpx.Client() as client:
        problem(client.send(client.build_request("GET", url)), "not_found")


def test_requests_at_once_give_one_adapter(tiny_client: httpx.Client) -> None:
    """Eight requests for one adapter at the same time make it once and get the same answer."""
    counted = 'deltaw_adapter_seconds_count{kind="token"}'
    before = metric(tiny_client, counted)
    body = BODY | {"query": "at once"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: tiny_client.post(ADAPTERS, json=body).json(), range(8)))
    assert answers == [answers[0]] * 8
    assert metric(tiny_client, counted) == before + 1


def test_metrics_count_adapters_and_bytes(tiny_client: httpx.Client, made: Adapter) -> None:
    """The gauges have the number of adapters and the bytes of the list."""
    listed = read_answer(AdaptersAnswer, tiny_client.get(ADAPTERS).content)
    assert metric(tiny_client, "deltaw_adapters") == len(listed.adapters) > 0
    assert metric(tiny_client, "deltaw_adapter_bytes") == listed.bytes >= made.bytes


@pytest.mark.parametrize(
    ("sent", "code", "pointer"),
    [
        ({}, "validation", ""),
        ({**PAIR, "kind": CANARY}, "validation", ""),
        (BODY | {"queries": ["a"]}, "validation", "/queries"),
        (BODY | {"name": ""}, "validation", "/name"),
        (BODY | {"context": ""}, "empty_context", "/context"),
        (BODY | {"query": [999]}, "token_out_of_range", "/query/0"),
        (BODY | {"positions": [9]}, "position_out_of_range", "/positions/0"),
        (BODY | {"context": [1] * 64}, "prompt_too_long", "/context"),
        (BODY | {"form": "bias", "query": "xyz", "positions": "all"}, "not_supported", "/form"),
    ],
)
def test_wrong_bodies_are_refused(
    tiny_client: httpx.Client, sent: dict[str, Any], code: str, pointer: str
) -> None:
    """Each mistake gets its code and a pointer that resolves."""
    said = problem(tiny_client.post(ADAPTERS, json=sent), code, sent)
    assert [mistake.pointer for mistake in said.errors or ()] == [pointer]


def test_lines_are_not_accepted(tiny_client: httpx.Client) -> None:
    """An adapter is made by one JSON body."""
    headers = {"Content-Type": "application/x-ndjson"}
    answer = tiny_client.post(ADAPTERS, content=json.dumps(BODY), headers=headers)
    problem(answer, "unsupported_media_type")


@pytest.mark.parametrize(
    ("path", "allowed"), [("", "GET, HEAD, POST"), (f"/{UNKNOWN}", "DELETE, GET, HEAD")]
)
def test_allow_names_all_methods_of_a_path(
    tiny_client: httpx.Client, path: str, allowed: str
) -> None:
    """Several operations share a path, and `Allow` has the methods of all of them."""
    answer = tiny_client.put(f"{ADAPTERS}{path}")
    problem(answer, "method_not_allowed")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_adapters_need_a_key(narrow: Heard, method: str) -> None:
    """Where the service has keys, every operation needs one."""
    path = ADAPTERS if method != "DELETE" else f"{ADAPTERS}/{UNKNOWN}"
    with httpx.Client(base_url=narrow.served.url) as client:
        problem(client.request(method, path), "missing_key")
        problem(client.get(f"{ADAPTERS}/{UNKNOWN}/adapter.zip"), "missing_key")


def test_prompts_reach_neither_log_nor_record(tiny_heard: Heard, made: Adapter) -> None:
    """Neither the log nor the answer of an adapter has a piece of its prompts."""
    assert CANARY not in tiny_heard.log.text
    assert CANARY not in tiny_heard.client.get(f"{ADAPTERS}/{made.id}").text


def run(scene: Coroutine[Any, Any, None]) -> None:
    """Play a scene with the real app in this process."""
    asyncio.run(scene)


@pytest.mark.slow
def test_limit_of_bytes_returns_507(tiny_folder: Path, tmp_path: Path) -> None:
    """Above the limit a new adapter is refused with both numbers, before any work if there is no
    room at all. What is there can be fetched and deleted."""

    def settings(limit: int) -> Settings:
        return Settings(model=str(tiny_folder), adapters=tmp_path, adapter_bytes=limit)

    async def scene() -> None:
        async with app_client(settings(1 << 20)) as client:
            whole = (await client.post(ADAPTERS, json=BODY)).json()
            held = (await client.get(ADAPTERS)).json()["bytes"]
        other = BODY | {"query": "other"}
        for limit in (held + 10, held):
            async with app_client(settings(limit)) as client:
                said = problem(await client.post(ADAPTERS, json=other), "storage_full", other)
                assert said.limit == limit
                assert (await client.post(ADAPTERS, json=BODY)).json() == whole
                assert (await client.get(ADAPTERS)).json()["bytes"] == held
        async with app_client(settings(held + 10)) as client:
            await client.delete(f"{ADAPTERS}/{whole['id']}")
            assert (await client.post(ADAPTERS, json=other)).status_code == 200

    run(scene())


def test_folder_that_cannot_be_written_returns_507(tiny_folder: Path, tmp_path: Path) -> None:
    """The service starts and answers all else. Only making an adapter fails."""
    (tmp_path / "file").write_text("")
    settings = Settings(model=str(tiny_folder), adapters=tmp_path / "file" / "adapters")

    async def scene() -> None:
        async with app_client(settings) as client:
            problem(await client.post(ADAPTERS, json=BODY), "storage_full", BODY)
            assert (await client.get(ADAPTERS)).json()["adapters"] == []
            assert (await client.post(CHECKS, json=PAIR)).json()["holds"] is True

    run(scene())


@pytest.mark.parametrize(
    ("more", "code"),
    [({}, "ill_conditioned"), ({"query": "xy", "positions": "all"}, "dependent_rows")],
)
def test_adapter_that_is_not_exact_is_not_stored(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
    code: str,
) -> None:
    """An adapter whose file misses the bound of rounding is refused with the error and the bound.
    Neither the list nor the disk has it."""
    monkeypatch.setattr("service.api.adapters.ROUNDING", 1e-12)

    async def scene() -> None:
        async with app_client(Settings(model=str(tiny_folder), adapters=tmp_path)) as client:
            said = problem(await client.post(ADAPTERS, json=BODY | more), code, BODY | more)
            assert said.limit == 1e-12
            assert isinstance(said.actual, float)
            assert said.limit < said.actual <= EXACT
            assert f"{said.actual:.1e}" in said.detail
            assert "1e-12" in said.detail
            assert (await client.get(ADAPTERS)).json()["adapters"] == []
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]

    run(scene())


def test_adapter_for_other_weights_is_listed_and_not_used(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """After the model was changed, an adapter of the earlier one is 409 at use, and the same
    request makes another one."""
    other_folder = save_tiny(tmp_path / "other", seed=1)
    kept = tmp_path / "adapters"

    async def scene() -> None:
        async with app_client(Settings(model=str(tiny_folder), adapters=kept)) as client:
            before = (await client.post(ADAPTERS, json=BODY)).json()
        async with app_client(Settings(model=str(other_folder), adapters=kept)) as client:
            (entry,) = (await client.get(ADAPTERS)).json()["adapters"]
            assert (entry["id"], entry["usable"]) == (before["id"], False)
            asked = {**PAIR, "scope": "model", "patch": {"adapter": before["id"]}}
            problem(await client.post(CHECKS, json=asked), "other_weights", asked)
            assert (await client.get(f"{ADAPTERS}/{before['id']}")).json() == before
            after = (await client.post(ADAPTERS, json=BODY)).json()
            assert after["id"] != before["id"]
            assert len((await client.get(ADAPTERS)).json()["adapters"]) == 2

    run(scene())
