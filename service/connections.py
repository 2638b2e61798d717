"""Connections: uvicorn's HTTP/1.1, where a sender has only so much time and so many bytes.

uvicorn waits for a request's head for as long as a client likes, and httptools reads headers,
trailers and chunk marks of any length; what is not HTTP it answers in plain text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools
import structlog
from uvicorn import Config
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from schemas.problems import PROBLEMS
from service.api.headers import EVERYWHERE
from service.api.problems import MEDIA_TYPE, ProblemError, written
from service.telemetry import request_id

MAX_HEAD_BYTES = 1 << 16
"""What of a request is not its body: its head, its trailers, the marks of its chunks."""
GRACE_SECONDS = 1.0
"""A body that is late is refused by whoever reads it; so much later the connection is closed."""
log = structlog.get_logger("deltaw")


@dataclass(frozen=True)
class Patience:
    """How long and how much is waited for.

    Args:
        header_seconds: In which a request's head arrives.
        body_seconds: In which its body does.
        idle_seconds: For which an answer may lie unread.
        max_connections: Open at once.
        refused: Is told the problem of a request that nobody else sees.
    """

    header_seconds: float
    body_seconds: float
    idle_seconds: float
    max_connections: int
    refused: Callable[[str], None]


class Connection(HttpToolsProtocol):
    """One client's connection.

    It waits for a head from its opening, and from the first byte after an answer; for a body from
    the end of the head; between the two for nothing. While reading is paused for another request's
    sake, no time passes.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        patience: Patience,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._patience = patience
        self._awaited: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None
        self._begun = False
        self._in_body = False
        self._overhead = 0
        self._idle_since = self.loop.time()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came; where it is one too many, the longest idle one is closed for it."""
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > self._patience.max_connections:
            open_ones = (one for one in self.connections if isinstance(one, Connection))
            idle = (one for one in open_ones if one.idle and not one.transport.is_closing())
            min(idle, key=lambda one: one._idle_since).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._disarm()
        self._stop_watching()
        if self._answering is not None:
            # uvicorn tells only the last of several requests that the client is gone.
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._unset_keepalive_if_required()
        if self._awaited is None:
            self._await_head()
        self._overhead += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # There is nothing to upgrade to, and the parser has given up on the rest.
            self.cycle.keep_alive = False
        except httptools.HttpParserError:
            self._refuse("malformed_request")
        else:
            if self._overhead > MAX_HEAD_BYTES:
                self._refuse("headers_too_large")

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._begun = True
        self._await_head()

    def on_headers_complete(self) -> None:
        """A request's head is whole."""
        super().on_headers_complete()
        self._in_body = True
        self._arm(self._patience.body_seconds + GRACE_SECONDS)

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._overhead -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._begun = self._in_body = False
        self._overhead = 0
        self._disarm()
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """An answer is written; where the connection ends with it, it must be read in time."""
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch()

    def pause_writing(self) -> None:
        """More is written than the client reads."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client has read almost all."""
        self._stop_watching()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for a while after an answer."""
        if self.flow.write_paused:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self.transport.abort()

    def _await_head(self) -> None:
        self._in_body = False
        self._arm(self._patience.header_seconds)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._awaited = self.loop.call_later(seconds, self._late, seconds)

    def _disarm(self) -> None:
        if self._awaited is not None:
            self._awaited.cancel()
            self._awaited = None

    def _late(self, seconds: float) -> None:
        """What was awaited has not come."""
        if self.flow.read_paused or not (self._in_body or self.idle):
            self._arm(seconds)
        elif self._in_body or not (self._begun or self._overhead):
            self.transport.abort()
        else:
            self._refuse("request_timeout")

    def _watch(self, unread: int | None = None) -> None:
        """Close the connection when the client has read nothing for a while."""
        left = self.transport.get_write_buffer_size()
        if unread is not None and left >= unread:
            self.transport.abort()
            return
        self._stop_watching()
        self._unread = self.loop.call_later(self._patience.idle_seconds, self._watch, left)

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _refuse(self, code: str) -> None:
        """Read no further, and say why where nobody else is being answered."""
        answering = None if self.idle else self._answering
        if answering is not None and not (self._in_body and answering is self.cycle):
            # It came behind a request that is good: that one is answered first.
            last = answering if self._in_body else self.cycle
            last.keep_alive = False
            self.flow.pause_reading()
            return
        # What is wrong in the rest of a request that is answered already is not said.
        unanswered = not self._in_body if self.idle else not self.cycle.response_started
        if not self.idle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if unanswered and not self.transport.is_closing():
            self._patience.refused(code)
            self.transport.write(refusal(code))
        self.transport.close()
        self._watch()


def refusal(code: str) -> bytes:
    """The whole answer to what never became a request, logged as one."""
    named = request_id(None)
    status = PROBLEMS[code].status
    body = written(ProblemError(code), "/", named)
    headers = {
        **EVERYWHERE,
        "X-Request-ID": named,
        "Cache-Control": "no-store",
        "Content-Type": MEDIA_TYPE,
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    log.info(
        "request", request_id=named, method="any", route="unmatched", status=status, problem=code
    )
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[status] + lines.encode() + b"\r\n" + body
