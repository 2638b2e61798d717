"""Downloads from a real HTTP server: the files that come, and a sentence for each failure."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session, constants

from service.engine import Model, load
from service.errors import CannotLoad
from tests.engine.made import reference
from tests.hub import (
    COMMIT,
    REPOSITORY,
    Address,
    Cut,
    Failing,
    Forbidden,
    Gated,
    Hub,
    Nonsense,
    Stalling,
    Unauthorized,
    Unknown,
    hub,
    nobody,
    silent,
)

Point = Callable[..., AbstractContextManager[list[str]]]


def fetched(revision: str | None = None) -> Model:
    """The repository of the hub, resident in float32 on the CPU."""
    return load(REPOSITORY, revision=revision, device="cpu", dtype="float32")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, a client that is online, and timeouts of 1 s.

    The hub's client reads its variables when it is imported, so they are set in its constants.
    """
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_ETAG_TIMEOUT": 1,
        "HF_HUB_DOWNLOAD_TIMEOUT": 1,
    }.items():
        monkeypatch.setattr(constants, name, value)
    close_session()
    yield tmp_path / "cache"
    close_session()


@pytest.fixture
def at(cache: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Point:
    """Points the client at a hub while a context lasts; gives the list of downloads."""

    @contextmanager
    def point(address: Address, folder: Path = tiny_folder) -> Iterator[list[str]]:
        with address(folder) as (url, downloads):
            template = url + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "ENDPOINT", url)
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            close_session()
            yield downloads

    return point


def serving(handler: type[Hub]) -> Address:
    """A hub that answers with this handler."""
    return partial(hub, handler)


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_hub_id_is_its_commit(at: Point, tiny: Model, revision: str | None) -> None:
    """The model is that of the files, and its revision is the commit, whatever named it."""
    with at(serving(Hub)):
        model = fetched(revision)
    assert (model.id, model.revision) == (REPOSITORY, COMMIT)
    assert model.weights_digest == tiny.weights_digest
    assert torch.equal(model.blocks[0].w_in.weight, tiny.blocks[0].w_in.weight)


def test_only_files_that_are_loaded_are_downloaded(
    at: Point, tiny_folder: Path, tmp_path: Path
) -> None:
    """Other safetensors files of a repository are neither downloaded nor part of the digest."""
    folder = tmp_path / "repository"
    shutil.copytree(tiny_folder, folder)
    for name in ("model.fp16", "consolidated", "adapter_model", "optimizer"):
        (folder / f"{name}.safetensors").write_bytes(b"other")
    with at(serving(Hub), folder) as downloads:
        model = fetched()
    assert [name for name in downloads if name.endswith(".safetensors")] == ["model.safetensors"]
    stored = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert model.weights_digest == f"sha256:{stored}"


def test_shards_of_any_name_are_downloaded(
    at: Point,
    tiny: Model,
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    """The index says which files hold the weights."""
    folder = tmp_path / "repository"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    reference(tiny_folder, torch.float32).save_pretrained(folder, max_shard_size="60KB")
    index = folder / "model.safetensors.index.json"
    for shard in folder.glob("model-*.safetensors"):
        shard.rename(folder / shard.name.replace("model-", "weights-"))
    index.write_text(index.read_text().replace('"model-', '"weights-'))
    with at(serving(Hub), folder) as downloads:
        model = fetched()
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    assert sorted(name for name in downloads if name.endswith(".safetensors")) == shards
    assert torch.equal(model.blocks[2].w_out.weight, tiny.blocks[2].w_out.weight)


def test_a_repository_with_an_adapter_is_refused_before_its_weights(
    at: Point, tiny_folder: Path, tmp_path: Path
) -> None:
    """transformers would apply the adapter; nothing large is downloaded to learn that."""
    folder = tmp_path / "repository"
    shutil.copytree(tiny_folder, folder)
    (folder / "adapter_config.json").write_text("{}")
    with at(serving(Hub), folder) as downloads, pytest.raises(CannotLoad, match="adapter"):
        fetched()
    assert not [name for name in downloads if name.endswith(".safetensors")]


def test_a_cached_hub_id_is_served_offline(
    at: Point,
    tiny: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A downloaded model is served without the hub, with the same commit."""
    with at(serving(Hub)):
        fetched()
    with at(nobody):
        assert fetched().revision == COMMIT
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert fetched("main").weights_digest == tiny.weights_digest
        with pytest.raises(CannotLoad, match="HF_HUB_OFFLINE"):
            fetched("another")


FAULTS: dict[str, tuple[Address, str]] = {
    "nobody": (nobody, "ConnectError"),
    "silent": (silent, "ReadTimeout"),
    "nonsense": (serving(Nonsense), "JSONDecodeError"),
    "500": (serving(Failing), "500"),
    "401": (serving(Unauthorized), "HF_TOKEN"),
    "403": (serving(Forbidden), "status 403.*HF_TOKEN"),
    "gated": (serving(Gated), "accepted its terms"),
    "404": (serving(Unknown), "no public model"),
    "cut": (serving(Cut), "RemoteProtocolError"),
    "stalling": (serving(Stalling), "RemoteProtocolError|ReadTimeout"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_hub_that_fails_is_one_sentence(at: Point, fault: str) -> None:
    """The sentence names the checkpoint and the reason, and says what to set instead."""
    address, reason = FAULTS[fault]
    with at(address), pytest.raises(CannotLoad, match=reason) as refused:
        fetched()
    assert REPOSITORY in refused.value.detail
    assert "set DELTAW_MODEL to a folder" in refused.value.detail
    assert "\n" not in refused.value.detail


def test_a_revision_that_the_hub_lacks_is_refused(
    at: Point,
) -> None:
    """The sentence names the revision and its setting."""
    with at(serving(Hub)), pytest.raises(CannotLoad, match=r"no revision 'v2'.*DELTAW_REVISION"):
        fetched("v2")


def test_a_file_that_the_cache_lacks_is_downloaded_again(
    at: Point, tiny: Model, cache: Path
) -> None:
    """A snapshot that an earlier download left incomplete is completed."""
    with at(serving(Hub)):
        fetched()
        for file in cache.rglob("model.safetensors"):
            file.resolve().unlink()
            file.unlink()
        assert fetched().weights_digest == tiny.weights_digest


def test_a_full_disk_names_the_cache(at: Point, cache: Path) -> None:
    """A file that cannot be written whole is refused, with the folder and its setting."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with at(serving(Hub)), pytest.raises(CannotLoad, match=r"too large.*HF_HOME") as no:
            fetched()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(cache) in no.value.detail


def test_a_cache_that_is_no_folder_is_named(
    at: Point,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cache that cannot be made is refused, with its setting."""
    cache.write_text("a file")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    with at(serving(Hub)), pytest.raises(CannotLoad, match="HF_HOME"):
        fetched()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("https_proxy", "ftp://127.0.0.1:9"),
        ("HTTP_PROXY", "http://127.0.0.1:port"),
        ("SSL_CERT_FILE", "/no/such/file"),
    ],
)
def test_a_variable_that_the_client_cannot_use_is_named(
    at: Point,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
) -> None:
    """The sentence names the environment variable that has to be corrected, and no other."""
    for other in ("HTTPS_PROXY", "SSL_CERT_DIR"):
        monkeypatch.setenv(other, "http://127.0.0.1:9" if "PROXY" in other else "/")
    monkeypatch.setenv(variable, value)
    with at(serving(Hub)), pytest.raises(CannotLoad, match=variable) as raised:
        fetched()
    of_files = variable.startswith("SSL")
    assert ("HTTPS_PROXY" if of_files else "SSL_CERT_DIR") not in str(raised.value)


def test_variables_of_the_client_do_not_matter_to_a_folder(
    tiny_folder: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is on this machine needs no HTTP client."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    close_session()
    model = load(str(tiny_folder), revision=None, device="cpu", dtype="float32")
    assert model.weights_digest == tiny.weights_digest
