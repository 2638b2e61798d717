"""Guard: limits on the time and the bytes that a connection takes for a request.

An HTTP server waits for the head of a request as long as the client likes, and reads heads,
trailers and chunk sizes of any length. A guard stands between the transport and the server's
protocol, whatever that is, and follows the framing of RFC 9112 to see where a request ends.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Generator, Iterable
from http import HTTPStatus

import structlog
from starlette.responses import Response

from schemas.problems import PROBLEMS
from service.api.headers import EVERYWHERE
from service.api.refusals import MEDIA_TYPE, ProblemError, written
from service.settings import Settings
from service.telemetry import Metrics, request_id

MAX_HEAD_BYTES = 1 << 16
"""Maximum bytes of a request outside its body: its head, chunk sizes and trailers."""
GRACE_SECONDS = 1.0
"""Seconds after `body_seconds` at which a connection is aborted: the application answers first."""
LINE = re.compile(rb".*\n")
EMPTY_LINE = re.compile(rb"\r\n")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;\w+(?:=\w+)?)*\r\n")
log = structlog.get_logger("deltaw")


class Guard(asyncio.Protocol):
    """One client's connection, passed to an inner protocol one request at a time.

    The application calls `began`, `responds` and `ended` for each request. Bytes that follow a
    request are held until it has ended, so the inner protocol never sees pipelined requests.

    Args:
        settings: Seconds to wait, and the maximum of connections.
        metrics: Counts the requests that the guard refuses.
        guards: The server's open connections.
        inner: Makes the protocol that speaks HTTP/1.1 and calls the application.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        guards: set[Guard],
        inner: Callable[[Guard], asyncio.Protocol],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._guards = guards
        self._inner = inner(self)
        self._loop = asyncio.get_running_loop()
        self._idle_since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.TimerHandle | None = None
        self._held = bytearray()
        self._passed = self._overhead = 0
        self._headers: dict[bytes, bytes] | None = None
        self._responding = self._ended = self._paused = False
        self._streaming = self._stalled = False
        self._framing = self._requests()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a head; above `max_connections`, abort the longest-idle connection."""
        self._transport = transport
        self._guards.add(self)
        self._inner.connection_made(transport)
        self._arm(self._settings.header_seconds)
        if len(self._guards) > self._settings.max_connections:
            open_ones = (guard for guard in self._guards if not guard._transport.is_closing())
            idle = (guard for guard in open_ones if guard._headers is None or guard._ended)
            min(idle, key=lambda guard: guard._idle_since, default=self)._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._guards.discard(self)
        for timer in (self._timer, self._watcher):
            if timer:
                timer.cancel()
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what belongs to the current request."""
        self._held += data
        self._advance()

    def eof_received(self) -> bool | None:
        """The inner protocol decides about a half-closed connection."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """The client reads less than is written."""
        self._stalled = True
        self._inner.pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client has read most of what was written."""
        self._stalled = False
        self._inner.resume_writing()
        self._watch()

    def began(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """The application is called for a request with these headers, names in lower case."""
        self._headers = dict(headers)
        self._loop.call_soon(self._advance)

    def streams(self) -> None:
        """Limit the time without a byte of this request's body, instead of the whole time."""
        self._streaming = True

    def responds(self) -> None:
        """The application starts its response, after which the guard writes none."""
        self._responding = True

    def ended(self) -> None:
        """The application has returned; the next request may follow."""
        self._ended = True
        self._idle_since = self._loop.time()
        self._watch()
        self._loop.call_soon(self._advance)

    def _advance(self) -> None:
        """Pass the permitted bytes on. Pause reading while more than `MAX_HEAD_BYTES` are held."""
        if not self._transport.is_closing():
            next(self._framing)
        if self._transport.is_closing():
            return
        data = bytes(self._held[: self._passed])
        del self._held[: self._passed]
        self._passed = 0
        if self._paused != (len(self._held) > MAX_HEAD_BYTES):
            self._paused = not self._paused
            (self._transport.pause_reading if self._paused else self._transport.resume_reading)()
        if data and self._streaming and self._timer:
            self._arm(self._settings.body_seconds + GRACE_SECONDS)
        if data:
            self._inner.data_received(data)

    def _requests(self) -> Generator[None, None, None]:
        """Pass one request after another; yield to wait for bytes or for the application."""
        while True:
            yield from self._byte()
            self._arm(self._settings.header_seconds)
            while not (yield from self._line(LINE))[0].strip(b"\r\n"):
                pass
            while (yield from self._line(LINE))[0].strip(b"\r\n"):
                pass
            while self._headers is None:
                yield
            self._arm(self._settings.body_seconds + GRACE_SECONDS)
            if b"transfer-encoding" in self._headers:
                yield from self._chunks()
            else:
                yield from self._body(int(self._headers.get(b"content-length", 0)))
            self._arm(None)
            while not self._ended:
                yield
            self._overhead = 0
            self._headers = None
            self._responding = self._ended = self._streaming = False

    def _byte(self) -> Generator[None, None, None]:
        while self._passed == len(self._held):
            yield

    def _body(self, size: int) -> Generator[None, None, None]:
        while size:
            yield from self._byte()
            part = min(size, len(self._held) - self._passed)
            self._passed += part
            size -= part

    def _chunks(self) -> Generator[None, None, None]:
        while size := int((yield from self._line(CHUNK_SIZE))[1], 16):
            yield from self._body(size)
            yield from self._line(EMPTY_LINE)
        while (yield from self._line(EMPTY_LINE if self._responding else LINE))[0] != b"\r\n":
            pass

    def _line(self, pattern: re.Pattern[bytes]) -> Generator[None, None, re.Match[bytes]]:
        """Pass a line outside the body.

        A line that does not match is passed too, so that the inner protocol refuses it. Once a
        response has started, the connection is closed instead: no second response may follow.
        """
        line = b""
        while not line.endswith(b"\n"):
            yield from self._byte()
            end = self._held.find(b"\n", self._passed) + 1 or len(self._held)
            line += self._held[self._passed : end]
            self._overhead += end - self._passed
            self._passed = end
            if self._overhead > MAX_HEAD_BYTES:
                self._refuse("headers_too_large")
                yield
        found = pattern.fullmatch(line)
        while found is None:
            if self._responding:
                self._transport.close()
                yield
            yield from self._line(LINE)
        return found

    def _arm(self, seconds: float | None) -> None:
        """Start the timer for a head or a body, in seconds; None stops it."""
        if self._timer:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self._overhead and self._headers is None:
            self._refuse("request_timeout")
        else:
            self._transport.abort()

    def _watch(self, unread: int | None = None) -> None:
        """Abort the connection once the client has read nothing for `idle_seconds`.

        While the application writes further pieces of a response, a fuller buffer does not mean
        that the client reads nothing, so only a stalled or ended response is watched.
        """
        if self._watcher:
            self._watcher.cancel()
        left = self._transport.get_write_buffer_size()
        if unread is not None and left >= unread:
            self._transport.abort()
        elif left and (self._stalled or self._ended or not self._responding):
            self._watcher = self._loop.call_later(self._settings.idle_seconds, self._watch, left)

    def _refuse(self, code: str) -> None:
        """Send a problem, unless a response has started, and close the connection."""
        if not (self._responding or self._transport.is_closing()):
            name = request_id(None)
            status = HTTPStatus(PROBLEMS[code].status)
            headers = {"X-Request-ID": name, "Cache-Control": "no-store", "Connection": "close"}
            body = written(ProblemError(code), "/", name)
            response = Response(body, status, {**EVERYWHERE, **headers}, MEDIA_TYPE)
            lines = [b"%s: %s\r\n" % header for header in response.raw_headers]
            start = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
            self._transport.write(b"".join([start, *lines, b"\r\n", body]))
            self._metrics.requests.labels("any", "unmatched", str(status.value)).inc()
            self._metrics.rejected.labels(code).inc()
            known = {"method": "any", "route": "unmatched", "status": status.value}
            log.info("request", request_id=name, **known, problem=code)
        self._transport.close()
        self._watch()
