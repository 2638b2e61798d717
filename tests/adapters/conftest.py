"""The variants that the default suite loads into PEFT. The others are slow tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.analysis.subjects import Subject
from tests.families import SERVED

USUAL = ("gpt2", "llama-biases", "gemma3", "neox-parallel", "opt")
"""One variant of each way to name, store and change weights."""


@pytest.fixture(
    scope="session",
    params=[
        name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in SERVED
    ],
)
def variant_name(request: pytest.FixtureRequest) -> str:
    """The name of each served variant in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def variant(variant_name: str, variant_of: Callable[[str], Subject]) -> Subject:
    """Each served variant in turn. Without this fixture, those of the other folders would be given
    one variant under the name of another."""
    return variant_of(variant_name)
