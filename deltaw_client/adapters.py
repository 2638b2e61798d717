"""Adapters: the methods of `client.adapters`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from deltaw_client import answers
from deltaw_client.answers import Received
from deltaw_client.calls import JSON, SAFETENSORS, A, Call
from deltaw_client.methods import Makes, MakesAsync, async_method, method
from deltaw_client.resources import Baseline, Positions, Text, post, takes
from schemas.adapters import FitOn, Recipe, StaticAdapterRequest, TokenAdapterRequest
from schemas.common import Request
from schemas.pairs import Form

PATH = "/v1/adapters"
PEFT_FILES = {"adapter_model.safetensors": SAFETENSORS, "adapter_config.json": JSON}
"""The files of a folder that PEFT loads, with their media types."""


@takes(TokenAdapterRequest, StaticAdapterRequest)
def create(
    context: Text,
    *,
    kind: Literal["token", "static"],
    query: Text | None = None,
    positions: Positions | None = None,
    form: Form | None = None,
    queries: Sequence[Text] | None = None,
    held_out: Sequence[Text] | None = None,
    recipe: Recipe | None = None,
    fit_on: FitOn | None = None,
    answer_tokens: int | None = None,
    ridge: float | None = None,
    from_layer: int | None = None,
    keep: Literal["default", "none"] | Sequence[Text] | None = None,
    keep_weight: float | None = None,
    rank: int | None = None,
    baseline: Baseline | None = None,
    name: str | None = None,
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.Adapter]:
    """Make an adapter from a context, or return it if the service has it already.

    `kind="token"` takes `query`, `positions` and `form`, and its adapter is exact for that query
    alone. `kind="static"` takes `queries` and the arguments up to `rank`. Its adapter is fitted,
    and `answer.held_out` says how well it serves queries that it was not fitted to. An argument
    that is None takes the service's default.
    """
    return replace(post(answers.Adapter, PATH, locals()), writes=True)


@takes(Request)
def list_all(
    *, request_id: str | None = None, deadline_seconds: float | None = None
) -> Call[answers.AdapterList]:
    """List the adapters, the latest first."""
    return Call(answers.AdapterList, PATH, None, JSON, request_id, deadline_seconds)


def get(id: str) -> Call[answers.Adapter]:
    """Return an adapter with its figures."""
    return Call(answers.Adapter, _path(id))


def delete(id: str) -> Call[Received]:
    """Delete an adapter. The answer has only the request's id."""
    return Call(Received, _path(id), method="DELETE", writes=True)


def _file(id: str, name: str) -> Call[Received]:
    return Call(Received, _path(id, name), accept=PEFT_FILES[name])


def _path(*names: str) -> str:
    return "/".join((PATH, *(quote(name, safe="") for name in names)))


def _write(folder: str | PathLike[str], files: Mapping[str, bytes]) -> Path:
    """Write the files, each whole or not at all. The configuration is written last."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        part = out / f".{name}.part"
        part.write_bytes(content)
        os.replace(part, out / name)
    return out


class Adapters:
    """The methods of `client.adapters`."""

    def __init__(self, client: Makes) -> None:
        self._client = client

    create = method(create)
    list = method(list_all)
    get = method(get)
    delete = method(delete)

    def make(self, call: Call[A]) -> A:
        """Make a call, like the client."""
        return self._client.make(call)

    def download(self, id: str, folder: str | PathLike[str]) -> Path:
        """Write an adapter into a folder that PEFT loads, and return its path.

        The folder is created if it does not exist. Nothing is written unless all files arrived.

        Raises:
            DeltawError: The service does not have the adapter, or cannot be reached.
            OSError: The folder cannot be written.
        """
        return _write(folder, {name: self.make(_file(id, name)).content for name in PEFT_FILES})


class AsyncAdapters:
    """The methods of `client.adapters` of the client for asyncio."""

    def __init__(self, client: MakesAsync) -> None:
        self._client = client

    create = async_method(create)
    list = async_method(list_all)
    get = async_method(get)
    delete = async_method(delete)

    async def make(self, call: Call[A]) -> A:
        """Make a call, like the client."""
        return await self._client.make(call)

    async def download(self, id: str, folder: str | PathLike[str]) -> Path:
        """Write an adapter into a folder that PEFT loads, like `Adapters.download`."""
        files = {name: (await self.make(_file(id, name))).content for name in PEFT_FILES}
        return _write(folder, files)
