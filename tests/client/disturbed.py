"""HTTP in which a test changes the lines of NDJSON responses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from deltaw_client.lines import NDJSON
from schemas.problems import PROBLEMS

Disturb = Callable[[int, Iterator[bytes]], Iterator[bytes]]
"""From the number of a request and its response's lines to the lines that the client receives."""


class Disturbed(httpx.HTTPTransport):
    """HTTP that keeps the lines of each NDJSON request, and changes those of its response.

    Args:
        disturb: Changes the lines of a response.
        then: Address of the service that answers every NDJSON request after the first, as behind a
            load balancer; None for the same one.
    """

    def __init__(self, disturb: Disturb, then: str | None = None) -> None:
        super().__init__()
        self._disturb = disturb
        self._then = None if then is None else httpx.URL(then)
        self.requests: list[list[dict[str, Any]]] = []
        self.ids: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        if request.headers.get("content-type") != NDJSON:
            return super().handle_request(request)
        number = len(self.requests)
        self.requests.append([json.loads(text) for text in request.read().splitlines()])
        self.ids.append(request.headers["x-request-id"])
        if number and self._then is not None:
            request.url = request.url.copy_with(port=self._then.port)
        response = super().handle_request(request)
        stream = _Stream(response, lambda lines: self._disturb(number, lines))
        return httpx.Response(response.status_code, headers=response.headers, stream=stream)


class _Stream(httpx.SyncByteStream):
    def __init__(
        self, response: httpx.Response, disturb: Callable[[Iterator[bytes]], Iterator[bytes]]
    ) -> None:
        self._response, self._disturb = response, disturb

    def __iter__(self) -> Iterator[bytes]:
        return self._disturb(self._lines())

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        for piece in self._response.iter_raw():
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line + b"\n" for line in lines)

    def close(self) -> None:
        self._response.close()


def problem_line(code: str, index: int | None) -> bytes:
    """Write a line with a problem."""
    kind = PROBLEMS[code]
    body = {
        "type": f"/problems/{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": kind.meaning,
        "instance": "/v1/weight-updates",
        "code": code,
        "request_id": "of-the-service",
        "retryable": kind.retryable,
    }
    return json.dumps({"index": index, "status": kind.status, "body": body}).encode() + b"\n"
