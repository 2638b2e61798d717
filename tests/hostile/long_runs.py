"""Hostile input for minutes. `make fuzz` runs this file; its name keeps it out of other runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.fuzz import fuzz
from tests.hostile.generated import KEY, generate, running
from tests.service_process import served

EXAMPLES = 1500
"""Maximum requests of each operation; one with few variations ends earlier."""
CONNECTIONS = 10_000
GROWTH = 64 << 20
"""Bytes that the server may grow by, because allocators keep some memory."""


def say(title: str, outcome: object) -> None:
    """Print the figures that the documentation reports."""
    print(f"\n{title}")
    for name, value in vars(outcome).items():
        print(f"  {name}: {value}")


@pytest.mark.parametrize("key", [None, KEY], ids=["open", "with a key"])
def test_long_run_of_generated_requests_finds_no_failure(
    tiny_folder: Path, key: str | None
) -> None:
    """More than 10,000 generated requests get the answers that the OpenAPI document promises."""
    keys = {"api_keys": (key,)} if key else {}
    with running(tiny_folder, threads=1, **keys) as app:
        tried = generate(app, examples=EXAMPLES, seed=20261124, key=key)
    say(f"generated, {'with a key' if key else 'open'}", tried)
    assert tried.cases > 10_000
    assert not tried.failures


@pytest.mark.parametrize("seed", [1, 2])
def test_long_run_of_mutated_requests_leaks_nothing(tiny_folder: Path, seed: int) -> None:
    """After thousands of mutated requests the service's memory and files are as before."""
    with served(model=tiny_folder, threads=1, header_seconds=2, body_seconds=2) as alone:
        fuzzed = fuzz(alone, connections=CONNECTIONS // 2, seed=seed)
    say(f"mutilated, seed {seed}", fuzzed)
    assert fuzzed.files[1] <= fuzzed.files[0]
    assert fuzzed.resident[1] - fuzzed.resident[0] < GROWTH
