"""Server-sent events, and a streamed request that they answer.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Generic

import httpx

from deltaw_client.answers import Receipt
from deltaw_client.attempts import Attempts
from deltaw_client.calls import EVENTS, A, Call, RetryPolicy, failure, problem_error, readable
from deltaw_client.errors import ConnectionFailed, DeltawError

DONE = b"[DONE]"
"""Data of the last event."""


class EventReader:
    """Reads the data of each event from the pieces of a response, split at any byte.

    Lines end with CRLF, LF or CR. The other fields and comments are ignored, and an event that no
    blank line ends is dropped, as the standard says.
    """

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._data: list[bytes] = []
        self._after_cr = False

    def receive(self, piece: bytes) -> Iterator[bytes]:
        """Take a piece, and give the data of each event that it completes."""
        # The CR that ended the last piece already ended its line.
        text = piece[1:] if self._after_cr and piece[:1] == b"\n" else piece
        self._after_cr = piece.endswith(b"\r") if piece else self._after_cr
        for line in text.splitlines(keepends=True):
            self._rest.append(line)
            if not line.endswith((b"\n", b"\r")):
                return
            whole = b"".join(self._rest).rstrip(b"\r\n")
            self._rest = []
            name, _, value = whole.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            elif not whole and self._data:
                yield b"\n".join(self._data)
                self._data = []


class EventStream(Attempts[A], Generic[A]):
    """A call whose answer arrives in events, each of the answer's class.

    The client retries it like a single call, but never after the first event: the caller already
    has that event, and another attempt may sample other tokens.
    """

    def __init__(self, call: Call[A], policy: RetryPolicy) -> None:
        own = call.deadline_seconds
        super().__init__(policy if own is None else replace(policy, deadline_seconds=own))
        self._call = call
        self._reader = EventReader()
        self._begun = self._done = False

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Begin an attempt: build the call's request."""
        self._pieces, self._reader = [], EventReader()
        return self._call.request(http)

    def receive(self, piece: bytes) -> Iterator[A]:
        """Take a piece of a response, and give the answers of the events that it completes."""
        if self._reply.status != 200 or self._reply.media != EVENTS:
            self._pieces.append(piece)
        for data in self._reader.receive(piece) if not self._pieces else ():
            self._done = self._done or data == DONE
            if not self._done:
                answer = self._read(data)
                self._begun = True
                yield answer
                self._part_taken()
        if not self._done:
            self.seconds_left()

    def _read(self, data: bytes) -> A:
        """Read the data of an event, or raise the problem that it holds."""
        with readable("an event"):
            value = json.loads(data)
            problem = problem_error(value["error"]) if "error" in value else None
        if problem is not None:
            raise problem
        came_with = Receipt(self._reply.headers.get("x-request-id", ""), {}, data)
        return self._call.read_value(value, came_with)

    def finish(self, error: DeltawError | None) -> Iterator[A]:
        """End an attempt: set `wait`, unless the stream is complete.

        Raises:
            DeltawError: The error ends the stream.
        """
        self.wait = None
        if not self._done:
            error = error or self._missing()
            again = not self._begun and self._call.allows_retry(error)
            if not again or not self._tries_again(error):
                raise error
        return iter(())

    def _missing(self) -> DeltawError:
        """Return the error of a response that ended without its last event."""
        if self._reply.status != 200 or self._reply.media != EVENTS:
            return failure(self._whole())
        return ConnectionFailed("the stream ended before its last event", sent=True)
