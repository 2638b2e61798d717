"""A request to the app in this process, whose bytes a test sends and reads one by one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import Message

from service.api.state import State
from service.main import create_app
from service.settings import Settings

SECONDS = 20.0
"""Seconds after which a test that waits has failed."""
NDJSON = {"content-type": "application/x-ndjson"}


def lines_of(*bodies: object) -> bytes:
    """An NDJSON body."""
    return b"".join(json.dumps(body).encode() + b"\n" for body in bodies)


class ByHand:
    """One request. The app's answer arrives only while `reads` is set.

    Args:
        app: The application.
        path: Path of the request.
        headers: Headers besides `Host`.
    """

    def __init__(self, app: FastAPI, path: str, headers: Mapping[str, str] = NDJSON) -> None:
        self.reads = asyncio.Event()
        self.reads.set()
        self.sent: list[Message] = []
        self._inbox = asyncio.Queue[Message]()
        self._came = asyncio.Event()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (name.encode(), value.encode())
                for name, value in {"host": "localhost", **headers}.items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        self.task = asyncio.ensure_future(app(scope, self._inbox.get, self._send))

    async def _send(self, message: Message) -> None:
        await self.reads.wait()
        self.sent.append(message)
        self._came.set()
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.leave()

    def write(self, body: bytes, *, more: bool = True) -> None:
        """Send a piece of the body."""
        self._inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        """Close the connection."""
        self._inbox.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        """Status of the answer; 0 before it has begun."""
        return int(self.sent[0]["status"]) if self.sent else 0

    @property
    def body(self) -> bytes:
        """The part of the answer that has arrived."""
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The answer lines that have arrived."""
        return [json.loads(line) for line in self.body.splitlines()]

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until something has arrived."""
        async with asyncio.timeout(SECONDS):
            while not reached():
                self._came.clear()
                await self._came.wait()

    async def end(self) -> None:
        """Wait until the app has returned."""
        async with asyncio.timeout(SECONDS):
            await self.task


@asynccontextmanager
async def ready_app(settings: Settings) -> AsyncIterator[tuple[FastAPI, State]]:
    """The app with its state, once the model is ready; afterwards nothing may be left of any
    request."""
    app = create_app(settings)
    state: State = app.state.deltaw
    async with app.router.lifespan_context(app):
        while not state.engine.checked:
            await asyncio.sleep(0.02)
        yield app, state
        async with asyncio.timeout(SECONDS):
            while not state.engine.idle or len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.01)


def client_for(app: FastAPI) -> httpx.AsyncClient:
    """A client of an app in this process."""
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=SECONDS)
