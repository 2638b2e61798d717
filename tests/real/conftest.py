"""Folders of pretrained models, for the tests here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.real.subject import Subject, subject_of
from tests.real.weights import PACKAGES, Unavailable, pretrained

MODELS = os.environ.get("REAL_MODELS", "smollm2").split()
"""Models to test on; `make real` sets it."""


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Checkpoint folder of SmolLM2-135M-Instruct in float32 (538 MB)."""
    return _folder("smollm2")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Checkpoint folder of Gemma 3 270M in float32 (1.1 GB)."""
    return _folder("gemma3")


@pytest.fixture(scope="session", params=PACKAGES)
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """The folder of each model."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="session")
def subject(checkpoint: Path) -> Iterator[Subject]:
    """Each model, served over HTTP, in the oracle and in transformers."""
    with subject_of(checkpoint) as found:
        yield found


def _folder(name: str) -> Path:
    """Return the folder of a model, or skip the test with the reason why there is none."""
    if name not in MODELS:
        pytest.skip(f"tests on {name} run if asked for: make real MODELS={name}")
    try:
        with torch.inference_mode(False):
            return pretrained(name)
    except Unavailable as reason:
        pytest.skip(f"{name} is unavailable: {reason}")
