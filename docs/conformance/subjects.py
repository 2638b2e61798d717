"""The measured checkpoints: random tiny models of every family, and trained models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import service.checkpoints
from schemas.common import DType
from service.engine.folder import BUNDLED, WEIGHTS
from service.engine.model import DTYPES
from tests.families import VARIANTS, save
from tests.real.weights import pretrained

Kind = Literal["random", "trained"]

IDS = (5, 99, 200, 17, 5, 42, 9, 10, 30, 99, 250, 33, 71, 180, 2)
"""The prompt of the random models: over twice as long as their window; no token follows itself."""
TEXT = (
    "The capital of Malaysia is Kuala Lumpur. The capital of USA is Washington D.C. The capital of "
    "Germany is Berlin"
)
"""The prompt of the trained models, from the seed experiment."""
TRAINED = {"smollm2": "SmolLM2-135M-Instruct", "gemma3": "Gemma 3 270M"}
"""Names of the pretrained models of `tests.real.weights`."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint, and the prompt that it reads.

    Args:
        name: Its name in the document.
        family: The `model_type` of its configuration.
        kind: Whether its weights are random or trained.
        folder: Its folder, in float32.
        ids: Ids of the prompt.
        query_length: Number of last ids that are the query of the equivalence checks.
    """

    name: str
    family: str
    kind: Kind
    folder: Path
    ids: tuple[int, ...]
    query_length: int


def random_subject(name: str, home: Path) -> Subject:
    """Save a variant of `tests.families` with random weights to a folder of its name in `home`."""
    folder = save(name, home / name)
    return Subject(name, model_type(folder), "random", folder, IDS, 5)


def random_subjects(home: Path) -> Iterator[Subject]:
    """Every variant of `tests.families`."""
    return (random_subject(name, home) for name in VARIANTS)


def trained_subjects(names: Sequence[str]) -> Iterator[Subject]:
    """The bundled model, and the named models of `tests.real.weights`.

    Raises:
        Unavailable: A model is not in the cache and cannot be made here.
    """
    folders = {BUNDLED: Path(service.checkpoints.__path__[0]) / BUNDLED}
    for name in names:
        folders[TRAINED[name]] = pretrained(name)
    for name, folder in folders.items():
        ids = AutoTokenizer.from_pretrained(folder).encode(TEXT)
        yield Subject(name, model_type(folder), "trained", folder, tuple(ids), 2)


def model_type(folder: Path) -> str:
    """The `model_type` of a checkpoint."""
    return str(json.loads((folder / "config.json").read_text())["model_type"])


def rounded(folder: Path, dtype: DType, target: Path) -> Path:
    """Copy a checkpoint with its weights rounded to a dtype."""
    shutil.copytree(folder, target)
    weights = load_file(target / WEIGHTS)
    with torch.inference_mode(False):
        narrow = {name: weight.to(DTYPES[dtype]) for name, weight in weights.items()}
        save_file(narrow, target / WEIGHTS, metadata={"format": "pt"})
    return target
