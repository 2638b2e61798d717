"""The server: uvicorn that drains before it stops, and that ends when the engine does."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from schemas.pairs import SEED_CONTEXT, SEED_QUERY
from service.api.request_log import GUARD
from service.api.state import State
from service.errors import ServiceError, sentence
from service.guard import Guard
from service.lifecycle import fault, keep_start_objects
from service.main import create_app
from service.settings import Settings

NOT_READY_SECONDS = 1.0
"""Seconds that a service with a stuck computation reports "not ready" before its process ends."""
log = structlog.get_logger("deltaw")


class Server(uvicorn.Server):
    """uvicorn's server with a drain.

    uvicorn closes its socket at SIGTERM and raises the signal again when it has stopped. This
    server first reports "not ready" and refuses new work, but still answers probes. It stops once
    accepted work is answered, or after `drain_seconds`, and returns. A second signal stops it at
    once.
    """

    def __init__(self, config: uvicorn.Config, state: State, url: str) -> None:
        super().__init__(config)
        self._state = state
        self._url = url
        self._drained_by: float | None = None
        self._announced = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; at the second signal, stop."""
        if self._drained_by is not None:
            self.should_exit = self.force_exit = True
            return
        self._state.engine.draining = True
        self._drained_by = time.monotonic() + self._state.settings.drain_seconds
        print(f"deltaw: {signal.Signals(sig).name}, draining", file=sys.stderr)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop: drained, out of time, or without an engine."""
        engine = self._state.engine
        if engine.fatal is not None:
            return True
        if (stuck := fault(self._state)) is not None:
            engine.draining = True
            await asyncio.sleep(NOT_READY_SECONDS)
            print(f"deltaw: {stuck}; the process ends", file=sys.stderr, flush=True)
            os._exit(1)
        if self._drained_by is not None:
            left = self._drained_by - time.monotonic()
            if engine.idle or left <= 0:
                # The rest of the time is for answers that are being sent.
                self.config.timeout_graceful_shutdown = max(1, math.ceil(left))
                self.should_exit = True
        if not self._announced and engine.checked:
            self._announced = True
            keep_start_objects()
            print(announcement(self._state, self._url), file=sys.stderr, flush=True)
        return await super().on_tick(counter)


def serve(settings: Settings) -> int:
    """Serve until a signal comes; the process's exit code."""
    app = create_app(settings)
    state: State = app.state.deltaw
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        log_level="error",  # uvicorn warns of everything that is not HTTP: scanners fill the log
        access_log=False,
        server_header=False,
        ws="none",
        http=_guarded(state),  # type: ignore[arg-type]
        timeout_keep_alive=settings.idle_seconds,
        timeout_graceful_shutdown=max(1, math.ceil(settings.drain_seconds)),
    )
    try:
        listener = _listen(settings)
    except OSError as error:
        print(f"deltaw: cannot listen on {settings.url}: {error.strerror}", file=sys.stderr)
        return 1
    with listener:
        port = listener.getsockname()[1]
        url = settings.model_copy(update={"port": port}).url
        Server(config, state, url).run([listener])
    if (fatal := state.engine.fatal) is None:
        if not state.engine.checked:
            # The threads of a download would keep the process until it has ended.
            sys.stderr.flush()
            os._exit(0)
        return 0
    if not isinstance(fatal, ServiceError):
        log.error("the computation ended", exc_info=fatal)
    print(f"deltaw: {sentence(fatal)}", file=sys.stderr)
    return 1


def _guarded(state: State) -> Callable[..., Guard]:
    """The protocol of a connection: uvicorn's own, behind a guard that each request finds in its
    scope."""
    protocol: Callable[..., asyncio.Protocol] = AutoHTTPProtocol
    guards: set[Guard] = set()

    def guarded(*, app_state: dict[str, Any], **known: Any) -> Guard:
        return Guard(
            state.settings,
            state.metrics,
            guards,
            lambda guard: protocol(app_state={**app_state, GUARD: guard}, **known),
        )

    return guarded


def _listen(settings: Settings) -> socket.socket:
    """The socket, bound before anything is loaded.

    TCP_NODELAY lets a connection send each piece at once. asyncio's own loop does not set it for a
    socket that it did not create, and the second piece of an answer would wait 40 ms.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def announcement(state: State, url: str) -> str:
    """The message after the start: the model, the self-check's result, and a command to try."""
    found = state.self_check
    if found is None or found.verdict != "holds":
        return f"deltaw: {state.unsound} The service accepts no requests."
    model = state.engine.model
    key = ' -H "Authorization: Bearer $DELTAW_API_KEY"' if state.keys else ""
    return f"""
deltaw serves {model.id}: {model.n_layers} layers, {model.dtype} on {model.device}, at {url}
self-check: {found.verdict}; {found.layers} layers, worst relative error \
{found.worst_relative_error:.1e}, unpatched at least {found.least_unpatched_relative_error:.1e}

curl -s {url}/v1/weight-updates{key} -H 'Content-Type: application/json' -d '{{
  "context": "{SEED_CONTEXT}",
  "query": "{SEED_QUERY}", "include": ["next_tokens"]}}'
"""
