"""Hostile input for minutes; `make fuzz` runs this file, whose name keeps it from other runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.fuzz import fuzz
from tests.hostile.generated import KEY, generate, running
from tests.service_process import served

EXAMPLES = 1500
"""Of each operation; those with little to vary end earlier."""
CONNECTIONS = 10_000
GROWTH = 64 << 20
"""Bytes that the server may have more after all of them: what allocators keep."""


def say(title: str, outcome: object) -> None:
    """Print what the documentation reports."""
    print(f"\n{title}")
    for name, value in vars(outcome).items():
        print(f"  {name}: {value}")


@pytest.mark.parametrize("key", [None, KEY], ids=["open", "with a key"])
def test_generated(tiny_folder: Path, key: str | None) -> None:
    """Ten thousand and more requests of the OpenAPI document are answered as it says."""
    keys = {"api_keys": (key,)} if key else {}
    with running(tiny_folder, threads=1, **keys) as app:
        tried = generate(app, examples=EXAMPLES, seed=20261124, key=key)
    say(f"generated, {'with a key' if key else 'open'}", tried)
    assert tried.cases > 10_000
    assert not tried.failures


@pytest.mark.parametrize("seed", [1, 2])
def test_fuzz(tiny_folder: Path, seed: int) -> None:
    """Thousands of mutilated requests leave the service as it was."""
    with served(model=tiny_folder, threads=1, header_seconds=2, body_seconds=2) as alone:
        fuzzed = fuzz(alone, connections=CONNECTIONS // 2, seed=seed)
    say(f"mutilated, seed {seed}", fuzzed)
    assert fuzzed.files[1] <= fuzzed.files[0]
    assert fuzzed.resident[1] - fuzzed.resident[0] < GROWTH
