"""Guard: it needs nothing of its inner protocol but `asyncio.Protocol`, on either event loop."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import uvloop

from service.guard import MAX_HEAD_BYTES, Guard
from service.settings import Settings
from service.telemetry import Metrics

GET = b"GET / HTTP/1.1\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n"
SECONDS = 10.0
"""Seconds after which a test that waits has failed."""


class Inner(asyncio.Protocol):
    """An inner protocol that keeps what it gets."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.received = bytearray()
        self.came = asyncio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep the bytes."""
        self.received += data
        self.came.set()

    async def until(self, expected: bytes) -> None:
        """Wait for exactly these bytes since the last time."""
        async with asyncio.timeout(SECONDS):
            while self.received != expected:
                assert expected.startswith(self.received)
                await self.came.wait()
                self.came.clear()
        self.received.clear()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> asyncio.Runner:
    """A runner of coroutines on an event loop."""
    return asyncio.Runner(loop_factory=request.param)


async def connect(
    settings: Settings | None = None,
) -> tuple[Inner, asyncio.StreamReader, asyncio.StreamWriter]:
    """A server's inner protocol behind a guard, and a client of it."""
    made: asyncio.Future[Inner] = asyncio.get_running_loop().create_future()

    def inner(guard: Guard) -> Inner:
        made.set_result(Inner(guard))
        return made.result()

    server = await asyncio.get_running_loop().create_server(
        lambda: Guard(settings or Settings(), Metrics(), set(), inner), "127.0.0.1"
    )
    address = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(*address)
    protocol = await made
    server.close()
    return protocol, reader, writer


def test_pipelined_requests_reach_the_inner_protocol_one_at_a_time(runner: asyncio.Runner) -> None:
    """A body follows once the application has begun, the next request once it has ended."""

    async def check() -> None:
        inner, _, writer = await connect()
        writer.write(POST + b"abc" + GET + GET)
        await inner.until(POST)
        inner.guard.began([(b"content-length", b"3")])
        await inner.until(b"abc")
        inner.guard.ended()
        await inner.until(GET)
        inner.guard.began([])
        inner.guard.ended()
        await inner.until(GET)
        writer.close()

    with runner:
        runner.run(check())


def test_reading_pauses_while_much_is_held(runner: asyncio.Runner) -> None:
    """A guard that holds more than 64 KiB reads no further until it may pass them on."""

    async def check() -> None:
        inner, _, writer = await connect()
        writer.write(GET)
        await inner.until(GET)
        inner.guard.began([])
        sent = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (2 * MAX_HEAD_BYTES)
        writer.write(sent + bytes(2 * MAX_HEAD_BYTES))
        async with asyncio.timeout(SECONDS):
            while inner.transport.is_reading():
                await asyncio.sleep(0.01)
        inner.guard.ended()
        await inner.until(sent)
        inner.guard.began([(b"content-length", b"%d" % (2 * MAX_HEAD_BYTES))])
        await inner.until(bytes(2 * MAX_HEAD_BYTES))
        assert inner.transport.is_reading()
        writer.close()

    with runner:
        runner.run(check())


def test_no_problem_is_written_into_a_response(runner: asyncio.Runner) -> None:
    """A request that breaks a limit after its response has started loses its connection only."""

    async def check() -> None:
        inner, reader, writer = await connect()
        head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head)
        await inner.until(head)
        inner.guard.began([(b"transfer-encoding", b"chunked")])
        inner.guard.responds()
        inner.transport.write(b"HTTP/1.1 200 OK\r\n")
        async with asyncio.timeout(SECONDS):
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            writer.write(b"1;" + b"x" * MAX_HEAD_BYTES)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()

    with runner:
        runner.run(check())


class Recorded(asyncio.Transport):
    """A transport whose write buffer a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.buffered = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        """Bytes that the client has not read."""
        return self.buffered

    def is_closing(self) -> bool:
        """Whether the guard has aborted the connection."""
        return self.aborted

    def abort(self) -> None:
        """Note the abort."""
        self.aborted = True


def test_fuller_buffer_of_a_response_under_way_is_no_stalled_client() -> None:
    """A client that reads while further pieces are written stays, even if more is buffered than
    before; one that reads nothing of a paused response does not."""

    async def check() -> None:
        transport = Recorded()
        guard = Guard(Settings(idle_seconds=1), Metrics(), set(), Inner)
        guard.connection_made(transport)
        guard.began([])
        guard.responds()
        transport.buffered = 100_000
        guard.pause_writing()
        transport.buffered = 10
        guard.resume_writing()
        transport.buffered = 60_000
        await asyncio.sleep(1.1)
        assert not transport.aborted
        transport.buffered = 100_000
        guard.pause_writing()
        await asyncio.sleep(1.1)
        assert transport.aborted
        guard.connection_lost(None)

    asyncio.run(check())


def test_streamed_body_is_limited_by_its_silence(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `streams` a body may take any time, and the connection ends once no byte comes."""
    monkeypatch.setattr("service.guard.GRACE_SECONDS", 0.0)

    async def check() -> None:
        inner, reader, writer = await connect(Settings(body_seconds=0.3))
        writer.write(POST[:-5] + b"99\r\n\r\n")
        await inner.until(POST[:-5] + b"99\r\n\r\n")
        inner.guard.began([(b"content-length", b"99")])
        inner.guard.streams()
        for _ in range(6):
            await asyncio.sleep(0.1)
            writer.write(b"a")
            await inner.until(b"a")
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()

    with runner:
        runner.run(check())
