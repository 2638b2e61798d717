"""Mutated requests, a few: `make fuzz` sends many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.fuzz import fuzz
from tests.service_process import Served, served

MiB = 1 << 20


@pytest.fixture(scope="module")
def alone(tiny_folder: Path) -> Iterator[Served]:
    """A server of its own, whose memory nobody else uses."""
    with served(model=tiny_folder, threads=1, header_seconds=1, body_seconds=1) as running:
        yield running


def test_fuzz(alone: Served) -> None:
    """What is done to a request's bytes is answered with its problem or by the end of the
    connection; the service neither fails, nor grows, nor repeats what was sent."""
    fuzzed = fuzz(alone, connections=150, first=50, seed=20260511)
    assert fuzzed.connections == 200
    assert {200, 400, 422} <= set(fuzzed.statuses)
    assert fuzzed.files[1] <= fuzzed.files[0]
    assert fuzzed.resident[1] - fuzzed.resident[0] < 32 * MiB
