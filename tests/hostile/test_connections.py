"""Connections: slow senders, slow readers, endless heads, garbage, and too many of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from service.guard import GRACE_SECONDS
from tests.api.wire import CANARY, client_of, log_of, metric
from tests.hostile.raw import (
    BODY,
    answers,
    connected,
    exchange,
    get,
    post,
    problem,
    sound,
    until_closed,
)
from tests.service_process import Served, served

pytestmark = pytest.mark.slow

PATIENCE = 0.6
"""Seconds that the hasty server grants a head, and a body."""


@pytest.fixture(scope="module")
def hasty(tiny_folder: Path) -> Iterator[Served]:
    """A server that waits for nobody, with room for eight connections."""
    with served(
        model=tiny_folder,
        header_seconds=PATIENCE,
        body_seconds=PATIENCE,
        idle_seconds=1,
        max_connections=8,
    ) as running:
        yield running
        assert "Traceback" not in running.log.read_text()
        assert CANARY not in running.log.read_text()


HEADS: dict[str, tuple[bytes, ...]] = {
    "half a line": (b"POST /v1/wei",),
    "half a head": (post()[:60],),
    "half a second head": (get("/livez"), post()[:60]),
    "half a second head at once": (get("/livez") + post()[:60],),
    "blank lines": (b"\r\n" * 8,),
}


@pytest.mark.parametrize("sent", HEADS.values(), ids=HEADS)
def test_late_head_returns_408_and_closes(hasty: Served, sent: tuple[bytes, ...]) -> None:
    """A head that is not complete within `header_seconds` gets 408, after the answers before it."""
    start = time.monotonic()
    with connected(hasty) as client:
        for piece in sent:
            client.sendall(piece)
        *before, last = answers(until_closed(client))
        assert time.monotonic() - start > PATIENCE
    assert [answer.status for answer in before] == [200] * b"".join(sent).count(b"/livez")
    problem(last, "request_timeout")
    assert last.headers["connection"] == "close"


def test_single_bytes_do_not_extend_the_head_timeout(hasty: Served) -> None:
    """A client that sends a byte now and then loses its connection all the same."""
    with connected(hasty) as client:
        start = time.monotonic()
        with pytest.raises(ConnectionError):  # noqa: PT012
            for byte in post() * 20:
                client.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - start < 10 * PATIENCE


@pytest.mark.parametrize("before", [b"", get("/livez")])
def test_silent_connection_is_closed_without_an_answer(hasty: Served, before: bytes) -> None:
    """A connection without a byte is closed silently, before and after a request."""
    with connected(hasty) as client:
        client.sendall(before)
        assert len(answers(until_closed(client))) == bool(before)


@pytest.mark.parametrize("path", ["/v1/weight-updates", "/v1/tokenize"])
def test_late_body_returns_408_and_closes(hasty: Served, path: str) -> None:
    """A body that is not complete within `body_seconds` gets 408."""
    with connected(hasty) as client:
        client.sendall(post(path=path)[:-1])
        (answer,) = answers(until_closed(client))
    said = problem(answer, "request_timeout")
    assert said.retryable
    assert said.instance == path
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/livez", "/nope", "/v1/weight-updates"])
def test_unread_late_body_is_answered_and_closed(hasty: Served, path: str) -> None:
    """A body that no handler reads does not keep the connection open."""
    with connected(hasty) as client:
        client.sendall(get(path, "Content-Length: 10"))
        (answer,) = answers(until_closed(client))
    assert answer.status in (200, 404, 405)


def test_pipelined_requests_are_answered_in_order(hasty: Served) -> None:
    """No timeout runs while a request is computed, however the next one arrives."""
    whole = exchange(hasty, post() + post()[:40], post()[40:], b"\r\n" + get("/livez"), enough=3)
    assert [answer.status for answer in whole] == [200, 200, 200]
    assert whole[0].headers["content-type"] == "application/json"


TOO_LONG = b"x" * 70_000
HUGE: dict[str, tuple[bytes, ...]] = {
    "one field": (get("/livez")[:-2] + b"X-Long: " + TOO_LONG[:40_000], TOO_LONG, TOO_LONG * 3),
    "many fields": (get("/livez")[:-2], *[b"X-Long: 1234567890\r\n" * 2000] * 16),
    "path": (b"GET /" + TOO_LONG, TOO_LONG * 4),
    "trailers": (
        get(
            "/v1/tokenize",
            "Content-Type: application/json",
            "Transfer-Encoding: chunked",
            method="POST",
        )
        + b"0\r\n",
        *[b"X-Long: 1234567890\r\n" * 2000] * 16,
    ),
    "chunk marks": (
        get(
            "/v1/tokenize",
            "Content-Type: application/json",
            "Transfer-Encoding: chunked",
            method="POST",
        )
        + b"1;"
        + TOO_LONG,
        TOO_LONG * 4,
    ),
}


@pytest.mark.parametrize("sent", HUGE.values(), ids=HUGE)
def test_endless_head_returns_431_and_closes(hasty: Served, sent: tuple[bytes, ...]) -> None:
    """More than 64 KiB outside the body are refused and counted once; a client that goes on sending
    may lose the answer with its connection."""
    counted = 'deltaw_rejected_total{reason="headers_too_large"}'
    with client_of(hasty) as client:
        before = metric(client, counted)
        came = exchange(hasty, *sent)
        assert metric(client, counted) == before + 1
    assert [answer.status for answer in came] in ([431], [])
    assert sound(hasty)


GARBAGE: dict[str, bytes] = {
    "no HTTP": b"zqcanaryqz\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "NUL in the path": b"GET /zqcanary\x00qz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "NUL in a header": get("/livez", "X: zq\x00canary"),
    "path in UTF-8": "GET /zqcanaryqz\u00e9\ud7ff HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
    "no such version": b"GET /livez HTTP/9.9\r\n\r\n",
    "space before a colon": get("/livez", "X : zqcanaryqz"),
    "a method of ours": b"ZQCANARYQZ /livez HTTP/1.1\r\n\r\n",
    "two lengths": post(BODY, "Content-Length: 3"),
    "length and chunks": post(BODY, "Transfer-Encoding: chunked"),
    "no length": get("/v1/tokenize", "Content-Length: zqcanaryqz", method="POST"),
    "negative length": get("/v1/tokenize", "Content-Length: -1", method="POST"),
    "a length beyond 64 bits": get("/v1/tokenize", "Content-Length: " + "9" * 40, method="POST"),
    "chunks of nonsense": get("/v1/tokenize", "Transfer-Encoding: chunked", method="POST")
    + b"zqcanaryqz\r\n",
    "asterisk": b"GET zqcanaryqz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CONNECT": b"CONNECT zqcanaryqz:443 HTTP/1.1\r\nHost: zqcanaryqz:443\r\n\r\n",
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
def test_garbage_returns_4xx_or_closes(hasty: Served, sent: bytes) -> None:
    """Bytes that are not HTTP get one 4xx or a closed connection, and no answer repeats them."""
    came = exchange(hasty, sent)
    assert len(came) <= 1
    for answer in came:
        assert 400 <= answer.status < 500
        assert CANARY not in (str(answer.headers) + answer.body.decode()).lower()
    assert sound(hasty)


def test_garbage_behind_a_request_follows_its_answer(hasty: Served) -> None:
    """Garbage behind a good request changes nothing about its answer, and ends the connection."""
    first, *rest = exchange(hasty, post() + b"zqcanaryqz\r\n\r\n" * 50)
    assert first.status in (200, 400)
    assert len(rest) <= 1
    whole = exchange(hasty, get("/livez") * 200, enough=200)
    assert [answer.status for answer in whole] == [200] * 200


def test_garbage_in_an_answered_body_closes_without_an_answer(hasty: Served) -> None:
    """A request that is answered gets no second answer, whatever its body turns out to be."""
    with connected(hasty) as client:
        client.sendall(get("/livez", "Transfer-Encoding: chunked"))
        assert whole_answer(client)
        client.sendall(b"zqcanaryqz\r\n")
        assert until_closed(client) == b""


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "zqcanaryqz"])
def test_upgrade_is_answered_and_closed(hasty: Served, upgrade: str) -> None:
    """A request for an upgrade is answered without one, or refused."""
    lines = ("Connection: Upgrade", f"Upgrade: {upgrade}")
    (answer,) = exchange(hasty, get("/livez", *lines))
    assert answer.status == 200
    assert answer.headers["connection"] == "close"
    (answer,) = exchange(hasty, post(BODY, *lines))
    assert answer.status in (200, 400)


def test_expect_continue_is_granted_when_the_body_is_read(hasty: Served) -> None:
    """`Expect: 100-continue` gets 100 when a handler reads the body, and no 100 when none will."""
    with connected(hasty) as client:
        head, body = post(BODY, "Expect: 100-continue").split(b"\r\n\r\n")
        client.sendall(head + b"\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(body)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    refused = get("/v1/tokenize", "Expect: 100-continue", "Content-Length: 9", method="POST")
    (answer,) = exchange(hasty, refused, enough=1)
    problem(answer, "unsupported_media_type")


def test_refusals_are_counted_and_logged(hasty: Served) -> None:
    """A refusal of the guard is counted, and logged under the request id of its answer."""
    with client_of(hasty) as client:
        sample = 'deltaw_rejected_total{reason="request_timeout"}'
        before = metric(client, sample)
        (answer,) = exchange(hasty, b"GET /livez")
        said = problem(answer, "request_timeout")
        assert metric(client, sample) == before + 1
    assert f'"{said.request_id}"' in hasty.log.read_text()


REFUSED: dict[str, tuple[bytes, ...]] = {
    "length": (get("/nope", f"Content-Length: {len(TOO_LONG)}", method="POST"), TOO_LONG),
    "length, at once": (get("/nope", "Content-Length: 4", method="POST") + b"abcd",),
    "chunks": (
        get("/nope", "Transfer-Encoding: chunked", method="POST"),
        b"%x\r\n%b\r\n" % (len(TOO_LONG), TOO_LONG) * 3,
        b"0\r",
        b"\n\r\n",
    ),
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_connection_serves_on_after_an_unread_body(hasty: Served, sent: tuple[bytes, ...]) -> None:
    """A request behind a body that no handler read is answered on the same connection."""
    came = exchange(hasty, *sent, get("/livez"), enough=2)
    assert [answer.status for answer in came] == [404, 200]


def test_chunk_extensions_and_trailers_are_skipped(hasty: Served) -> None:
    """A chunked body with extensions and trailers is read, and a request behind it is answered."""
    head = get(
        "/v1/weight-updates",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
        method="POST",
    )
    body = b"1;a;b=c\r\n%b\r\n%x\r\n%b\r\n0\r\nX: y\r\n\r\n" % (BODY[:1], len(BODY) - 1, BODY[1:])
    whole = exchange(hasty, head + body + get("/livez"), enough=2)
    assert [answer.status for answer in whole] == [200, 200]
    pieces = [bytes([byte]) for byte in head + body + get("/livez")]
    assert [answer.status for answer in exchange(hasty, *pieces, enough=2)] == [200, 200]


def test_client_that_never_reads_is_disconnected(hasty: Served) -> None:
    """The connection of a client that sends requests and reads no answer is aborted."""
    with connected(hasty) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(0.2)
        start = time.monotonic()
        with pytest.raises(ConnectionError):  # noqa: PT012
            while time.monotonic() - start < 15.0:
                try:
                    client.sendall(get("/docs/assets/swagger-ui-bundle.js"))
                except TimeoutError:
                    time.sleep(0.1)
                else:
                    time.sleep(0.1)
        assert time.monotonic() - start < 15.0
    assert sound(hasty)


LINE = BODY + b"\n"
CHUNKED = get(
    "/v1/weight-updates",
    "Content-Type: application/x-ndjson",
    "Transfer-Encoding: chunked",
    method="POST",
)


def chunk(piece: bytes) -> bytes:
    """A chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def test_lines_may_come_slowly_but_not_stall(hasty: Served) -> None:
    """Lines that come within `body_seconds` of each other are answered for longer than that; then a
    silent client gets `request_timeout` as the last line."""
    with connected(hasty) as client:
        client.sendall(CHUNKED)
        start = time.monotonic()
        count = 0
        while time.monotonic() - start < 3 * PATIENCE + GRACE_SECONDS:
            client.sendall(chunk(LINE))
            count += 1
            time.sleep(PATIENCE / 3)
        received = until_closed(client)
    assert received.count(b'"status":200') == count
    assert received.count(b'{"index":null,"status":408,"body":') == 1
    assert received.endswith(b"\r\n0\r\n\r\n")


def test_slow_bytes_do_not_extend_the_time_of_a_json_body(hasty: Served) -> None:
    """Only lines may come slowly: a JSON body is refused after `body_seconds`."""
    with connected(hasty) as client:
        start = time.monotonic()
        with pytest.raises(ConnectionError):  # noqa: PT012
            for byte in post(path="/v1/tokenize"):
                client.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - start < 5 * PATIENCE + GRACE_SECONDS


def test_client_that_reads_no_lines_is_disconnected(hasty: Served) -> None:
    """A client that sends lines and reads no answers is disconnected; its request is dropped."""
    line = b'{"prompts": ["%b"]}\n' % (b"abcdefgh" * 64)
    sent = post(
        line * 2000, "X-Request-ID: deaf", path="/v1/tokenize", media="application/x-ndjson"
    )
    with connected(hasty) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(sent)
        logged = log_of(hasty).await_request("deaf")
    assert logged["status"] == 499
    assert logged["lines"] < 2000
    assert sound(hasty)


def test_one_connection_too_many_closes_the_longest_idle(hasty: Served) -> None:
    """Above `max_connections` the longest-idle connection is closed, and the new one is served."""
    with ExitStack() as stack:
        first, *others = [stack.enter_context(connected(hasty)) for _ in range(8)]
        for other in others:
            other.sendall(get("/livez"))
            assert whole_answer(other)
        late = stack.enter_context(connected(hasty))
        late.sendall(get("/livez"))
        assert whole_answer(late)
        assert until_closed(first) == b""
        others[-1].sendall(get("/livez"))
        assert whole_answer(others[-1])


def test_answered_connections_with_unfinished_bodies_are_idle(hasty: Served) -> None:
    """Clients that never finish their answered requests do not keep a new client out."""
    with ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(connected(hasty))
            client.sendall(get("/livez", "Content-Length: 10"))
            assert whole_answer(client)
        late = stack.enter_context(connected(hasty))
        late.sendall(get("/livez"))
        assert whole_answer(late)


def test_client_may_leave_pipelined_requests(hasty: Served) -> None:
    """A client that leaves while its pipelined requests are answered leaves no fault behind."""
    asset = get("/docs/assets/swagger-ui-bundle.js")
    for sent in (post() * 5, asset * 5, post() + asset):
        with connected(hasty) as client:
            client.sendall(sent)
    assert sound(hasty)


def whole_answer(client: socket.socket) -> bool:
    """Whether `/livez` answers on a connection that stays open."""
    received = b""
    while b'{"status":"live"}' not in received:
        chunk = client.recv(4096)
        if not chunk:
            return False
        received += chunk
    return True
