"""A short run of mutated requests; `make fuzz` sends many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.fuzz import fuzz
from tests.service_process import Served, served

MiB = 1 << 20


@pytest.fixture(scope="module")
def alone(tiny_folder: Path) -> Iterator[Served]:
    """A server that no other test uses, so that its memory can be measured."""
    with served(model=tiny_folder, threads=1, header_seconds=1, body_seconds=1) as running:
        yield running


def test_mutated_requests_leave_the_service_sound(alone: Served) -> None:
    """Each mutated request gets a problem or a closed connection; the service does not fail, grow
    or repeat the input."""
    fuzzed = fuzz(alone, connections=150, first=50, seed=20260511)
    assert fuzzed.connections == 200
    assert {200, 400, 422} <= set(fuzzed.statuses)
    assert fuzzed.files[1] <= fuzzed.files[0]
    assert fuzzed.resident[1] - fuzzed.resident[0] < 32 * MiB
