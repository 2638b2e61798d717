"""A replica: the whole service in one process, which the front calls through a Ray Serve handle."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import ray
from starlette.types import Message, Scope

from service.errors import sentence
from service.fleet.ids import Head, Opening
from service.fleet.logs import log_to_stderr
from service.lifecycle import fault, keep_start_objects, loaded
from service.main import create_app
from service.settings import PREFIX, read_settings

PIECE_BYTES = 1 << 20
"""Maximum bytes of a piece. While a client reads slowly, the replica sends no further pieces."""


class Replica:
    """The deployment of a model. A replica accepts requests once its model has passed the
    self-check.

    Args:
        settings: Settings by name. The environment sets the others.

    Raises:
        RuntimeError: The model cannot be served. Ray Serve shows the message as the reason why the
            application does not start.
    """

    async def __init__(self, settings: Mapping[str, Any]) -> None:  # type: ignore[misc]
        # Ray Serve awaits `__init__`, so it can be a coroutine.
        try:
            chosen = read_settings(**{"threads": _threads(), **settings})
        except (ValueError, OSError) as error:
            raise RuntimeError(f"deltaw: {error}") from None
        log_to_stderr(chosen.log_format)
        self._app = create_app(chosen)
        self._state = self._app.state.deltaw
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        try:
            await loaded(self._state)
        except BaseException as error:
            await self._lifespan.__aexit__(None, None, None)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise RuntimeError(f"deltaw: {sentence(error)}") from None
        keep_start_objects()

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Opening | bytes]:
        """Answer a request: first the head with a piece of the body, then the other pieces.

        If a replica sent the head alone and then died, the front could not repeat the request.
        Ray Serve cancels the call when the client disconnects.

        Args:
            scope: The ASGI scope of the request.
            body: The body of the request.
        """
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        # One message at a time, so that the application waits while the client reads slowly.
        room = asyncio.Semaphore(1)
        received = False

        async def receive() -> Message:
            nonlocal received
            if received:
                await asyncio.Event().wait()
            received = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            await room.acquire()
            messages.put_nowait(message)

        async def run() -> None:
            try:
                await self._app({**scope, "state": {}}, receive, send)
            finally:
                messages.put_nowait(None)

        running = asyncio.create_task(run())
        head: Head | None = None
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    head = message["status"], list(message.get("headers", ()))
                else:
                    content, begin = message.get("body", b""), 0
                    if head is not None:
                        yield head, content[:PIECE_BYTES]
                        head, begin = None, PIECE_BYTES
                    for start in range(begin, len(content), PIECE_BYTES):
                        yield content[start : start + PIECE_BYTES]
                room.release()
            await running
        finally:
            running.cancel()
            await asyncio.wait({running})

    async def whole_answer(self, scope: Scope) -> tuple[str, Head, bytes]:
        """Answer a request without a body. Return this replica's name, the head and the body."""
        pieces: list[Any] = [piece async for piece in self.answer(scope, b"")]
        head, first = pieces[0]
        return _name(), head, b"".join([first, *pieces[1:]])

    async def check_health(self) -> None:
        """Check that the engine can answer requests. Ray Serve replaces the replica if not.

        Raises:
            RuntimeError: The engine has failed, or its computation is stuck.
        """
        if (reason := fault(self._state)) is not None:
            raise RuntimeError(f"deltaw: {reason}")

    async def __del__(self) -> None:
        """Stop the engine. Ray Serve first waits for the requests in progress."""
        if hasattr(self, "_lifespan"):
            await self._lifespan.__aexit__(None, None, None)


def _threads() -> int:
    """Return the number of CPU threads: `DELTAW_THREADS` if it is set, else the replica's cores.

    The default of the service would be all cores of the node, but other replicas use them too. So
    the default here is the number of cores that Ray has assigned to this replica.
    """
    if os.environ.get(f"{PREFIX}THREADS"):
        return int(os.environ[f"{PREFIX}THREADS"])
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def _name() -> str:
    name: str = ray.serve.get_replica_context().replica_id.unique_id
    return name
