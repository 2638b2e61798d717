"""Clients of the tiny GPT-2, and a service with scripted replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from deltaw_client import AsyncDeltawClient, DeltawClient
from schemas.problems import PROBLEMS
from service.cli.transport import InProcessTransport
from service.main import create_app
from service.settings import Settings
from tests.service_process import Served

CONTEXT, QUERY = "the abc cd", " the"
Reply = tuple[int, dict[str, str], bytes]
"""Status, headers and body of a scripted reply."""
DROPPED: Reply = (0, {}, b"")
"""The service closes the connection instead of replying."""
CUT: Reply = (200, {"Content-Length": "100", "Connection": "close"}, b"{")
"""The connection closes in the middle of the body."""


@pytest.fixture
def client(tiny_service: Served) -> Iterator[DeltawClient]:
    """A client of the tiny GPT-2 behind real HTTP."""
    with DeltawClient(tiny_service.url) as made:
        yield made


@asynccontextmanager
async def async_client(
    folder: Path, key: str | None = None, **settings: Any
) -> AsyncIterator[AsyncDeltawClient]:
    """A client of the real application in this process."""
    chosen = Settings(model=str(folder), log_format="json", **settings)
    app = create_app(chosen)
    transport = InProcessTransport(app)
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as probe:
            while (await probe.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.02)
        async with AsyncDeltawClient(
            "http://localhost", api_key=key, transport=InProcessTransport(app)
        ) as made:
            yield made


@dataclass
class Scripted:
    """A service that sends scripted replies over real HTTP.

    Args:
        url: Address of the service.
        replies: (status, headers, body) for each request; the last one is repeated.
        heard: Headers of each request so far.
        asked: Method and path of each request so far, and its body.
    """

    url: str
    replies: list[Reply]
    heard: list[dict[str, str]] = field(default_factory=list)
    asked: list[tuple[str, bytes]] = field(default_factory=list)


@contextmanager
def scripted(*replies: Reply) -> Iterator[Scripted]:
    """Start a service with these replies."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            said.asked.append((f"{self.command} {self.path}", body))
            said.heard.append({name.lower(): value for name, value in self.headers.items()})
            ahead = len(said.replies) > 1
            status, headers, content = said.replies.pop(0) if ahead else said.replies[0]
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    said = Scripted(f"http://127.0.0.1:{server.server_port}", list(replies))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield said
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def problem(code: str, **headers: str) -> Reply:
    """Make a reply with a problem, as the service writes it."""
    kind = PROBLEMS[code]
    said = {
        "type": f"/problems/{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": kind.meaning,
        "instance": "/v1/model",
        "code": code,
        "request_id": "of-the-service",
        "retryable": kind.retryable,
    }
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    media = {"Content-Type": "application/problem+json"}
    return kind.status, media | named, json.dumps(said).encode()
