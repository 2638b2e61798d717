"""Fixtures: a fleet behind a real HAProxy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cluster import haproxy
from benchmarks.cluster.haproxy import Fleet, find_haproxy, haproxy_fleet
from tests.checkpoints import save_tiny

EMULATION = Path(haproxy.__file__).parent / "emulation"
ROOT_PATH = "/deltaw"
"""Prefix below which the replicas serve. They also serve without it."""
DEVICE_SECONDS = 0.05
"""Seconds of a forward pass on the emulated device."""


@pytest.fixture(scope="session")
def haproxy_binary() -> str:
    """Path of the HAProxy binary. The test is skipped if there is none.

    `DELTAW_HAPROXY` names a binary, so that the tests can run on other versions of HAProxy.
    """
    found = os.environ.get("DELTAW_HAPROXY") or find_haproxy()
    if found is None:
        pytest.skip("there is no HAProxy: `make test-slow` or Debian's `haproxy` installs one")
    return found


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint folder of a random GPT-2 that has 512 positions and all token ids of the load."""
    with torch.inference_mode(False):
        return save_tiny(tmp_path_factory.mktemp("wide"), n_positions=512, vocab_size=5001)


def emulated(seconds: float = DEVICE_SECONDS) -> dict[str, str]:
    """Return variables that make each forward pass take `seconds` and no processor time."""
    path = os.pathsep.join(filter(None, (str(EMULATION), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "EMULATED_DEVICE_SECONDS": str(seconds)}


@pytest.fixture(scope="session")
def fleet(haproxy_binary: str, wide_folder: Path) -> Iterator[Fleet]:
    """Two replicas with an emulated device behind HAProxy. Each test leaves both running."""
    settings: dict[str, Any] = {
        "model": wide_folder,
        "threads": 1,
        "row_budget": 64,
        "max_ndjson_bytes": 4 << 20,
        "root_path": ROOT_PATH,
    }
    with haproxy_fleet(binary=haproxy_binary, variables=emulated(), **settings) as running:
        yield running
