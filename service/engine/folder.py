"""Find the folder of a checkpoint, and refuse files that transformers would read differently.

A name is `bundled`, a folder, or a hub id. A hub checkpoint is downloaded into the hub's cache,
which gives a folder too. Only safetensors files are loaded: no pickles.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import service.checkpoints
from service.engine.hub import INSTEAD, fetch
from service.errors import CannotLoad

BUNDLED = "bundled"
ADAPTER = "adapter_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FILES = (
    "config.json",
    "config.*.json",
    ADAPTER,
    INDEX,
    "tokenizer.json",
    "tokenizer.*.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""Files of a hub id that are downloaded before its weights; `config.*.json` and `tokenizer.*.json`
are variants for other versions of transformers."""
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
DISTRIBUTED = "shard-*-model-*-of-*.safetensors"
"""Shards that transformers would load in place of `model.safetensors`."""


def locate(name: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of a checkpoint, without its weights if it comes from the hub, and its commit.

    Raises:
        CannotLoad: The checkpoint is not found, or the revision cannot be honoured.
    """
    if name == BUNDLED:
        folder, kind = Path(service.checkpoints.__path__[0]) / BUNDLED, "comes with deltaw"
    elif Path(name).is_dir():
        folder, kind = Path(name), "is a folder here"
    else:
        folder = fetch(name, revision, FILES)
        return folder, folder.name
    if revision:
        raise CannotLoad(
            f"DELTAW_REVISION is {revision!r}, but {name!r} {kind} and has no revisions: unset "
            "DELTAW_REVISION, or set DELTAW_MODEL to a hub id that is not the name of a folder"
        )
    return folder, None


def refuse_folder(name: str, folder: Path, commit: str | None) -> None:
    """Refuse a folder that lacks files, or whose files change what its weights mean."""
    if (folder / ADAPTER).exists():
        raise CannotLoad(
            f"{name!r} has an adapter ({ADAPTER}), which transformers would apply and deltaw does "
            "not: merge it into the weights, or use a folder without that file"
        )
    if any(folder.glob(DISTRIBUTED)):
        raise CannotLoad(
            f"{name!r} is a distributed checkpoint ({DISTRIBUTED}): save it with save_pretrained"
        )
    if not any(all((folder / file).is_file() for file in files) for files in TOKENIZER_FILES):
        raise CannotLoad(_absent(f"{name!r} has no tokenizer", commit))


def weight_files(name: str, folder: Path, commit: str | None) -> list[Path]:
    """The files that transformers loads: `model.safetensors`, or else the shards of the index.

    Raises:
        CannotLoad: There are no such files, or they cannot be downloaded.
    """
    shards: list[str] = []
    if (folder / INDEX).is_file():
        with reading(f"the {INDEX} of {name!r}"):
            shards = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    if commit is not None:
        fetch(name, commit, [WEIGHTS, *shards])
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not shards:
        absent = f"{name!r} has neither {WEIGHTS} nor {INDEX}, and pickles are not loaded"
        raise CannotLoad(_absent(absent, commit))
    return [folder / shard for shard in shards]


def _absent(sentence: str, commit: str | None) -> str:
    """Say what a checkpoint lacks.

    If the hub cannot be reached, its cache may hold only a part of a checkpoint, and the hub's
    client raises no error.
    """
    partly = "" if commit is None else " in the hub's cache, which may be incomplete: try again, or"
    return f"{sentence}{partly or ':'} {INSTEAD}"


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn any error of a library that reads a damaged checkpoint into one sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise CannotLoad(f"{what} cannot be read ({type(error).__name__}): {INSTEAD}") from error
