"""The store: an adapter is whole or not there, and its id never leads out of the folder."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from zipfile import ZipFile

import pytest
import torch

from schemas.adapters import FILES
from service.adapters.store import LOADED, Store
from service.engine import Model
from service.errors import OtherWeights, StorageFull, UnknownAdapter
from tests.adapters.made import random_updates, record_of, stored
from tests.analysis.subjects import Subject

ONE, TWO = "1" * 32, "2" * 32
PLENTY = 1 << 30
HIDDEN = ".lock"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store whose folder does not exist yet."""
    return Store(tmp_path / "data" / "adapters", PLENTY)


def reopened(store: Store) -> Store:
    """The same folder in another process."""
    again = Store(store._folder, PLENTY)
    again.remove_leftovers()
    return again


def names(store: Store) -> list[str]:
    """All names in the folder beside the lock."""
    return sorted(path.name for path in store._folder.iterdir() if path.name != HIDDEN)


def test_stored_adapter_is_found_after_a_restart(store: Store, tiny: Model) -> None:
    """Another process finds the record and the same updates."""
    record = stored(store, tiny, ONE, name="capitals")
    again = reopened(store)
    assert again.records() == [record]
    assert again.get(ONE) == record
    read, updates = again.load(tiny, ONE).updates, random_updates(tiny, bias=False)
    assert read.keys() == updates.keys()
    for layer, update in updates.items():
        (one, other) = (update.w_out, read[layer].w_out)
        assert one is not None
        assert other is not None
        assert torch.allclose(one.dense(), other.dense(), rtol=0, atol=1e-7)


def test_adapters_are_listed_latest_first(store: Store, tiny: Model) -> None:
    """The list is in the order of the times at which they were made."""
    stored(store, tiny, TWO, created="2026-01-02T00:00:00Z")
    stored(store, tiny, ONE, created="2026-01-01T00:00:00Z")
    assert [record.id for record in store.records()] == [TWO, ONE]


def test_folder_and_adapters_are_readable_by_the_owner_only(store: Store, tiny: Model) -> None:
    """An adapter tells what its context says."""
    stored(store, tiny, ONE)
    for folder in (store._folder, store._folder / ONE):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_draft_is_not_listed(store: Store, tiny: Model) -> None:
    """A draft is on the disk and not in the list. Discarded, it leaves nothing."""
    draft = store.draft(tiny, random_updates(tiny, bias=False))
    assert draft.folder.is_dir()
    assert store.records() == []
    assert store.find(ONE) is None
    store.discard(draft)
    assert names(store) == []


def test_leftovers_are_removed_unless_a_process_writes(store: Store, tiny: Model) -> None:
    """What a killed process left is removed at the next start. The draft of a process that lives
    stays."""
    stored(store, tiny, ONE)
    left = store._folder / ".new-0123"
    left.mkdir()
    (left / FILES[1]).write_bytes(b"half")
    draft = store.draft(tiny, random_updates(tiny, bias=False))
    assert reopened(store)._folder.joinpath(".new-0123").exists()
    assert draft.folder.exists()
    store.discard(draft)
    assert names(reopened(store)) == [ONE]


def test_first_of_two_with_one_id_stays(store: Store, tiny: Model) -> None:
    """Two processes that store the same id at once leave one whole adapter, the first."""
    other = Store(store._folder, PLENTY)
    drafts = [one.draft(tiny, random_updates(tiny, bias=False)) for one in (store, other)]
    first = store.keep(drafts[0], record_of(tiny, ONE, name="first"))
    assert other.keep(drafts[1], record_of(tiny, ONE, name="second")) == first
    assert names(store) == [ONE]


def test_limit_is_refused_before_anything_is_written(tmp_path: Path, tiny: Model) -> None:
    """An adapter above the limit is refused with both numbers, and the others stay whole."""
    room = Store(tmp_path, PLENTY)
    stored(room, tiny, ONE)
    narrow = Store(tmp_path, room.used_bytes + 100)
    narrow.require_room()
    with pytest.raises(StorageFull) as refused:
        narrow.draft(tiny, random_updates(tiny, bias=False))
    assert refused.value.limit == room.used_bytes + 100
    assert refused.value.actual is not None
    assert refused.value.actual > refused.value.limit
    assert names(narrow) == [ONE]
    narrow.delete(ONE)
    stored(narrow, tiny, TWO)


def test_folder_that_cannot_be_written_is_one_error(tmp_path: Path, tiny: Model) -> None:
    """A folder that cannot be made or written gives `StorageFull`, with the system's reason."""
    file = tmp_path / "file"
    file.write_text("")
    store = Store(file / "adapters", PLENTY)
    store.remove_leftovers()
    assert store.records() == []
    assert store.used_bytes == 0
    with pytest.raises(StorageFull, match="Not a directory"):
        store.draft(tiny, random_updates(tiny, bias=False))


@pytest.mark.parametrize(
    "wrong", ["", ".", "..", "../x", f"../{ONE}", f"{ONE}/", f"{ONE}\n", HIDDEN, ONE[:-1], "A" * 32]
)
def test_id_never_leaves_the_folder(store: Store, tiny: Model, wrong: str) -> None:
    """An id that is no name of the form is unknown to every method, whatever lies there."""
    stored(store, tiny, ONE)
    outside = store._folder.parent / ONE
    outside.symlink_to(store._folder / ONE)
    uses: list[Callable[[], object]] = [
        lambda: store.get(wrong),
        lambda: store.load(tiny, wrong),
        lambda: store.open(wrong, FILES[0]),
        lambda: store.delete(wrong),
    ]
    for use in uses:
        with pytest.raises(UnknownAdapter):
            use()
    assert names(store) == [ONE]


def test_deleted_adapter_is_unknown(store: Store, tiny: Model) -> None:
    """A deleted adapter is gone from the list, the memory and the disk. What was loaded is still
    usable."""
    stored(store, tiny, ONE)
    loaded = store.load(tiny, ONE)
    store.delete(ONE)
    assert store.records() == []
    assert names(store) == []
    assert loaded.updates
    for use in (store.get, store.delete, lambda one: store.load(tiny, one)):
        with pytest.raises(UnknownAdapter):
            use(ONE)


def test_adapter_deleted_while_it_is_read_is_unknown(
    store: Store, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that is deleted after its record was read is unknown to `load`."""
    stored(store, tiny, ONE)
    known = store._known

    def known_until_now(adapter_id: str) -> object:
        record = known(adapter_id)
        reopened(store).delete(adapter_id)
        return record

    monkeypatch.setattr(store, "_known", known_until_now)
    with pytest.raises(UnknownAdapter):
        store.load(tiny, ONE)


def test_adapter_for_other_weights_is_refused_at_use(
    store: Store, tiny: Model, variant_of: Callable[[str], Subject]
) -> None:
    """It is listed and can be deleted, but not loaded into a model with other weights."""
    stored(store, tiny, ONE)
    other = variant_of("gpt2").model
    with pytest.raises(OtherWeights):
        store.load(other, ONE)
    assert store.get(ONE).model.weights_digest == tiny.weights_digest
    store.delete(ONE)


@pytest.mark.parametrize("name", FILES[:2])
def test_changed_file_is_not_used(store: Store, tiny: Model, name: str) -> None:
    """A file that is not what was written raises an error, and no other numbers are computed."""
    stored(store, tiny, ONE)
    file = store._folder / ONE / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(RuntimeError, match=name):
        store.load(tiny, ONE)


def test_record_of_another_version_is_not_listed_and_replaced(store: Store, tiny: Model) -> None:
    """A record that this version cannot read is left out, and the same request makes it anew."""
    stored(store, tiny, ONE)
    file = store._folder / ONE / "adapter.json"
    record = json.loads(file.read_text())
    record["adapter"]["later"] = 1
    file.write_text(json.dumps(record))
    again = reopened(store)
    assert again.records() == []
    stored(again, tiny, ONE)
    assert [record.id for record in again.records()] == [ONE]
    assert names(again) == [ONE]


def test_loaded_adapters_stay_in_memory_up_to_a_number(store: Store, tiny: Model) -> None:
    """An adapter is read once while it is among the last used, and again later."""
    ids = [f"{i:032x}" for i in range(LOADED + 1)]
    for one in ids:
        stored(store, tiny, one)
    first = store.load(tiny, ids[0])
    assert store.load(tiny, ids[0]) is first
    for one in ids[1:]:
        store.load(tiny, one)
    assert store.load(tiny, ids[0]) is not first


def test_remade_adapter_is_read_again(store: Store, tiny: Model) -> None:
    """An adapter that another process deleted and made again is not the one in memory."""
    stored(store, tiny, ONE)
    before = store.load(tiny, ONE)
    other = reopened(store)
    other.delete(ONE)
    draft = other.draft(tiny, random_updates(tiny, bias=False, seed=1))
    other.keep(draft, replace(record_of(tiny, ONE), name="again"))
    after = store.load(tiny, ONE)
    assert after.record.name == "again"
    assert after is not before


def test_archive_holds_the_files_that_peft_reads(store: Store, tiny: Model) -> None:
    """The archive has both files as they are on the disk, and the same bytes each time."""
    stored(store, tiny, ONE)
    with store.open(ONE, FILES[2]) as once, store.open(ONE, FILES[2]) as twice:
        assert once.read() == twice.read()
        with ZipFile(once) as archive:
            assert archive.testzip() is None
            assert sorted(archive.namelist()) == sorted(FILES[:2])
            for name in FILES[:2]:
                with store.open(ONE, name) as file:
                    assert archive.read(name) == file.read()


@pytest.mark.parametrize("name", [FILES[0], FILES[2]])
def test_read_error_of_a_file_is_not_storage_full(store: Store, tiny: Model, name: str) -> None:
    """A file that cannot be read raises the system's error."""
    stored(store, tiny, ONE)
    file = store._folder / ONE / FILES[0]
    file.unlink()
    file.symlink_to(file)  # it cannot be opened, even by root
    with pytest.raises(OSError, match="symbolic links"):
        store.open(ONE, name)


@pytest.mark.parametrize("method", ["write", "seek", "flush"])
def test_archive_that_cannot_be_written_is_storage_full(
    store: Store, tiny: Model, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A full disk gives `StorageFull`, whichever call writes the archive's buffer."""
    stored(store, tiny, ONE)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SpooledTemporaryFile, method, full)
    with pytest.raises(StorageFull, match="is full"):
        store.open(ONE, FILES[2])
