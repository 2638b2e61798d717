"""Servers of the contract tests: a tiny one, one with small limits, and a slow one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.api.wire import Log, client_of, log_of
from tests.checkpoints import byte_tokenizer, save_tiny
from tests.service_process import SERVER, Served, served

KEY = "open-sesame"
NARROW: dict[str, Any] = {
    "api_keys": f"{KEY},another",
    "max_prompts": 2,
    "max_body_bytes": 2000,
    "max_lines": 6,
    "max_ndjson_bytes": 8000,
    "max_response_bytes": 100_000,
    "max_tokens_per_request": 40,
}
"""Settings of the narrow server."""
POISON = "z"
"""A token whose embedding is NaN in the narrow server's checkpoint."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """If another server replaces `deltaw serve`, run only the tests that start a server."""
    if SERVER in os.environ:
        kept = [item for item in items if asks_over_http(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def asks_over_http(item: pytest.Item) -> bool:
    """Whether a test or one of its fixtures starts a server."""
    assert isinstance(item, pytest.Function)
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    functions = [item.function, *(one.func for defined in fixtures for one in defined)]
    return any("served" in function.__code__.co_names for function in functions)


@dataclass(frozen=True)
class Heard:
    """A server, its client and its log.

    Args:
        served: The server.
        client: A client, with the API key if the server requires one.
        log: The output of the server.
    """

    served: Served
    client: httpx.Client
    log: Log


@pytest.fixture(scope="session")
def tiny_heard(tiny_service: Served) -> Iterator[Heard]:
    """The server of the tiny GPT-2, with its log."""
    with client_of(tiny_service) as client:
        yield Heard(tiny_service, client, log_of(tiny_service))


@pytest.fixture
def tiny_client(tiny_heard: Heard) -> httpx.Client:
    """A client of the server of the tiny GPT-2."""
    return tiny_heard.client


def poison(folder: Path, row: slice) -> Path:
    """Set rows of a checkpoint's token embedding to NaN."""
    file = folder / "model.safetensors"
    with torch.inference_mode(False):
        weights = load_file(file)
        weights["transformer.wte.weight"][row] = torch.nan
        save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Heard]:
    """A server with small limits, keys, no <|endoftext|>, and one token whose embedding is NaN."""
    with torch.inference_mode(False):
        folder = save_tiny(tmp_path_factory.mktemp("narrow"), special=False)
    token = byte_tokenizer(special=False).convert_tokens_to_ids(POISON)
    assert isinstance(token, int)
    poison(folder, slice(token, token + 1))
    with served(model=folder, **NARROW) as running, client_of(running, KEY) as client:
        yield Heard(running, client, log_of(running))


@pytest.fixture(scope="session")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 large enough that a request can take seconds."""
    with torch.inference_mode(False):
        return save_tiny(
            tmp_path_factory.mktemp("slow"), n_layer=12, n_embd=256, n_head=4, n_positions=1024
        )


@pytest.fixture(scope="session")
def slow(slow_folder: Path) -> Iterator[Heard]:
    """A server that runs one question at a time, with a queue of one and no prefix cache."""
    settings: dict[str, Any] = {
        "model": slow_folder,
        "batching": "false",
        "prefix_cache_bytes": 0,
        "queue_size": 1,
        "threads": 1,
        "max_response_bytes": 256 << 20,
    }
    with served(**settings) as running, client_of(running) as client:
        yield Heard(running, client, log_of(running))
