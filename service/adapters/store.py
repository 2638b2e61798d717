"""The store: adapters in a folder, each whole or not there.

An adapter is a folder, named by its id, with the two files that PEFT reads and `adapter.json`: the
answer that was given when it was made, and the digests of the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import SpooledTemporaryFile
from threading import Lock
from typing import IO, Any, cast
from zipfile import ZipFile, ZipInfo

import structlog
import torch
from pydantic import ValidationError

from schemas.adapters import FILES, Adapter
from schemas.common import read_answer, write_answer
from service import tensor_file
from service.adapters import disk
from service.adapters.peft import from_peft, to_peft
from service.engine import Model
from service.errors import OtherWeights, StorageFull, UnknownAdapter
from service.theory.static_update import StaticUpdate

CONFIG, WEIGHTS, ARCHIVE = FILES
RECORD = "adapter.json"
ID = re.compile(r"[0-9a-f]{32}")
LOADED = 8
"""Maximum adapters whose updates stay in memory."""
IN_MEMORY = 1 << 24
"""Maximum bytes of an archive in memory. A larger one is made on the disk."""
log = structlog.get_logger("deltaw")


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """An adapter whose updates were read from its files.

    Args:
        id: Its id.
        updates: The update of each patched layer, float32, on the model's device.
        record: The answer that was given when it was made.
    """

    id: str
    updates: Mapping[int, StaticUpdate]
    record: Adapter


@dataclass(frozen=True, eq=False)
class Draft:
    """An adapter on the disk that is not listed. `Store.keep` or `Store.discard` ends it.

    Args:
        folder: Its folder.
        lock: File descriptor of the lock that protects the folder.
        digests: SHA-256 of each file.
        bytes: Bytes of the weights' file.
        updates: The updates that were read back from the files.
    """

    folder: Path
    lock: int
    digests: Mapping[str, str]
    bytes: int
    updates: Mapping[int, StaticUpdate]


@dataclass(frozen=True)
class Record:
    """The content of `adapter.json`."""

    adapter: Adapter
    sha256: Mapping[str, str]


class Store:
    """Adapters in a folder, which is made at the first write.

    Args:
        folder: The folder.
        limit_bytes: Maximum bytes of all its files.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self.limit_bytes = limit_bytes
        self._loaded: OrderedDict[str, StoredAdapter] = OrderedDict()
        self._loading = Lock()
        self._writing = Lock()

    def remove_leftovers(self) -> None:
        """Remove what killed processes left, unless another process is writing."""
        disk.remove_leftovers(self._folder)

    @property
    def used_bytes(self) -> int:
        """Bytes of all files, including those of drafts."""
        return disk.total_bytes(self._folder)

    def records(self) -> list[Adapter]:
        """The answer that was given when each adapter was made, the latest first."""
        names = os.listdir(self._folder) if self._folder.is_dir() else []
        found = [record.adapter for name in names if (record := self._record(name)) is not None]
        return sorted(found, key=lambda one: (one.created, one.id), reverse=True)

    def find(self, adapter_id: str) -> Adapter | None:
        """The answer that was given when an adapter was made. None if no adapter has the id."""
        record = self._record(adapter_id)
        return None if record is None else record.adapter

    def get(self, adapter_id: str) -> Adapter:
        """As `find`. Raises `UnknownAdapter` if no adapter has the id."""
        return self._known(adapter_id).adapter

    def load(self, model: Model, adapter_id: str) -> StoredAdapter:
        """Read an adapter for use with the resident model.

        Raises:
            UnknownAdapter: No adapter has the id.
            OtherWeights: It was made for other weights.
            RuntimeError: Its files are not those that were written.
        """
        record = self._known(adapter_id)
        made_for = record.adapter.model
        if made_for.weights_digest != model.weights_digest:
            raise OtherWeights(
                f"The adapter was made for {made_for.id}, whose weights are not those of the "
                "resident model. Make it again."
            )
        with self._loading:
            loaded = self._loaded.get(adapter_id)
            if loaded is None or loaded.record is not record.adapter:
                try:
                    updates = _read(model, self._folder / adapter_id, record.sha256)
                except FileNotFoundError:  # it was deleted after its record was read
                    raise _unknown() from None
                loaded = StoredAdapter(adapter_id, updates, record.adapter)
            self._loaded[adapter_id] = loaded
            self._loaded.move_to_end(adapter_id)
            if len(self._loaded) > LOADED:
                self._loaded.popitem(last=False)
        return loaded

    def open(self, adapter_id: str, name: str) -> IO[bytes]:
        """Open a file of `FILES`. The archive holds the other two.

        Raises:
            UnknownAdapter: No adapter has the id.
            StorageFull: The disk has no room for a large archive.
        """
        self._known(adapter_id)
        folder = self._folder / adapter_id
        try:
            return _packed(folder) if name == ARCHIVE else (folder / name).open("rb")
        except FileNotFoundError:
            raise _unknown() from None

    def delete(self, adapter_id: str) -> None:
        """Delete an adapter. Raises `UnknownAdapter` if no adapter has the id."""
        self._known(adapter_id)
        with self._loading:
            self._loaded.pop(adapter_id, None)
        try:
            disk.unlist(self._folder / adapter_id)
        except FileNotFoundError:
            raise _unknown() from None

    def require_room(self, more: int = 1) -> None:
        """Refuse to store more bytes than the limit allows.

        Raises:
            StorageFull: All files together would have more bytes than the limit.
        """
        total = self.used_bytes + more
        if total > self.limit_bytes:
            raise StorageFull(
                f"The adapters would take {total:,} bytes; the limit is {self.limit_bytes:,}. "
                "Delete adapters.",
                limit=self.limit_bytes,
                actual=total,
            )

    def draft(self, model: Model, updates: Mapping[int, StaticUpdate]) -> Draft:
        """Write updates as files that are not listed yet, and read them back.

        Raises:
            StorageFull: The disk is full or cannot be written, or the limit would be exceeded.
        """
        tensors, config = to_peft(model, updates)
        files = {
            CONFIG: json.dumps(config, indent=2).encode(),
            WEIGHTS: tensor_file.write(
                {name: tensor.numpy() for name, tensor in tensors.items()},
                {"format": "pt"},
            ),
        }
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        with disk.storing(), self._writing:
            self.require_room(sum(map(len, files.values())))
            folder, lock = disk.begin(self._folder)
            try:
                for name, content in files.items():
                    disk.write(folder / name, content)
                read = _read(model, folder, digests)
            except BaseException:
                disk.discard(folder, lock)
                raise
        return Draft(folder, lock, digests, len(files[WEIGHTS]), read)

    def keep(self, draft: Draft, adapter: Adapter) -> Adapter:
        """List a draft under its id. If another process has stored that id, its adapter stays.

        Returns:
            The adapter that is listed.

        Raises:
            StorageFull: The disk is full or cannot be written. The draft is discarded.
        """
        target = self._folder / adapter.id
        try:
            with disk.storing():
                record = write_answer(Record(adapter, draft.digests))
                disk.write(draft.folder / RECORD, record)
                if target.exists() and self._record(adapter.id) is None:
                    disk.unlist(target)  # another version of the service wrote it
                disk.publish(draft.folder, target)
        finally:
            self.discard(draft)
        return self.find(adapter.id) or adapter

    def discard(self, draft: Draft) -> None:
        """Remove what is left of a draft."""
        disk.discard(draft.folder, draft.lock)

    def _known(self, adapter_id: str) -> Record:
        if (record := self._record(adapter_id)) is None:
            raise _unknown()
        return record

    def _record(self, adapter_id: str) -> Record | None:
        # The id comes from a request. Only a name of this form may become part of a file's path.
        if not ID.fullmatch(adapter_id):
            return None
        file = self._folder / adapter_id / RECORD
        try:
            return _recorded(file, file.stat().st_mtime_ns)
        except OSError:
            return None


@lru_cache(maxsize=4096)
def _recorded(file: Path, _changed_ns: int) -> Record | None:
    """Read a record. None if another version of the service wrote it."""
    try:
        return read_answer(Record, file.read_bytes())
    except ValidationError:
        log.warning("an adapter was written by another version", adapter=file.parent.name)
        return None


def _read(model: Model, folder: Path, digests: Mapping[str, str]) -> dict[int, StaticUpdate]:
    """Read the updates of a folder, whose files must have these SHA-256 digests."""
    contents = {name: bytearray((folder / name).read_bytes()) for name in digests}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != digests[name]:
            raise RuntimeError(f"{name} of the adapter {folder.name} is not what was written")
    tensors = {
        name: torch.from_numpy(values)
        for name, values in tensor_file.read(contents[WEIGHTS]).items()
    }
    return from_peft(model, tensors, json.loads(contents[CONFIG]))


def _packed(folder: Path) -> IO[bytes]:
    """An archive of the files that PEFT reads. The same files give the same bytes."""
    packed = _Archive(IN_MEMORY, dir=str(folder.parent))
    try:
        with ZipFile(packed, "w") as archive:
            for name in (CONFIG, WEIGHTS):
                entry = ZipInfo(name)  # its time is fixed, unlike a file's
                entry.external_attr = 0o644 << 16
                with (folder / name).open("rb") as source, archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target)
        packed.seek(0)
    except BaseException:
        with suppress(OSError):  # a full disk again
            packed.close()
        raise
    return cast(IO[bytes], packed)


class _Archive(SpooledTemporaryFile[bytes]):
    """The file of an archive. Only its own errors are those of a full disk.

    `seek` and `flush` may write what is buffered.
    """

    def write(self, content: Any) -> int:
        with disk.storing():
            return super().write(content)

    def flush(self) -> None:
        with disk.storing():
            super().flush()

    def seek(self, *to: int) -> int:
        with disk.storing():
            return super().seek(*to)


def _unknown() -> UnknownAdapter:
    return UnknownAdapter("No adapter has this id. `/v1/adapters` lists all adapters.")
