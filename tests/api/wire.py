"""Shared code of the contract tests: pointers, problems, tensors in answers, and server logs."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from schemas.common import UNSET, read_answer, write_answer
from schemas.problems import Problem
from tests.service_process import Served

T = TypeVar("T")

CANARY = "zqcanaryqz"
"""A text of the request that must never appear in a problem or a log."""
SAFETENSORS = "application/vnd.safetensors"
POINTER_LENGTH = 64
REPLICA = re.compile(r',?(deployment|replica)="[^"]*"')
"""Labels that a fleet adds to each sample."""

STATUSES = {
    400: ("malformed_json", "malformed_request"),
    401: ("missing_key",),
    403: ("wrong_key",),
    404: ("not_found", "unknown_adapter", "unknown_model"),
    405: ("method_not_allowed",),
    406: ("not_acceptable",),
    408: ("request_timeout",),
    409: ("other_weights",),
    413: ("body_too_large", "too_many_items", "too_many_lines"),
    415: ("unsupported_media_type",),
    421: ("unknown_host",),
    422: (
        "validation",
        "not_supported",
        "no_anchor_token",
        "bad_span",
        "empty_context",
        "empty_query",
        "prompt_too_long",
        "layer_out_of_range",
        "position_out_of_range",
        "token_out_of_range",
        "unknown_hook_point",
        "too_few_queries",
        "never_fits",
        "dependent_rows",
        "ill_conditioned",
    ),
    429: ("queue_full",),
    431: ("headers_too_large",),
    500: ("internal", "non_finite", "no_rows_patched"),
    502: ("replica_lost",),
    503: ("loading", "draining", "out_of_memory", "self_check_failed"),
    504: ("deadline_exceeded",),
    507: ("storage_full",),
}
"""The problem codes of the contract (api.md) by status, written down a second time."""
RETRYABLE = (408, 429, 502, 503, 504)
"""Statuses after which the same request may succeed."""
STATUS = {code: status for status, codes in STATUSES.items() for code in codes}


def resolve(pointer: str, document: Any) -> Any:
    """The value to which an RFC 6901 pointer resolves in a document.

    Raises:
        LookupError: The pointer does not resolve.
    """
    if not pointer:
        return document
    root, *steps = pointer.split("/")
    assert root == "", f"{pointer!r} does not begin with a slash"
    here = document
    for escaped in steps:
        assert not re.search("~(?![01])", escaped), f"{pointer!r} is not escaped"
        step = escaped.replace("~1", "/").replace("~0", "~")
        if isinstance(here, list):
            if not re.fullmatch("0|[1-9][0-9]*", step):
                raise LookupError(pointer)
            here = here[int(step)]
        elif isinstance(here, dict):
            here = here[step]
        else:
            raise LookupError(pointer)
    return here


def problem(response: httpx.Response, code: str, sent: Any = None) -> Problem:
    """Parse an answer as a problem and check everything that all problems share.

    Args:
        response: The answer.
        code: The expected code.
        sent: The request's body, in which every pointer must resolve.
    """
    assert response.headers.get("content-type") == "application/problem+json", response.text[:500]
    said = read_answer(Problem, response.content)
    assert said.code == code, response.text[:500]
    assert response.status_code == said.status == STATUS[code]
    assert said.type == f"/problems/{code}"
    assert said.title
    assert said.detail
    assert response.request.url.path.startswith(said.instance)
    assert said.request_id == response.headers["x-request-id"]
    assert said.retryable == (said.status in RETRYABLE)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-store"
    assert (said.limit is UNSET) == (said.actual is UNSET)
    if said.status in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
    for mistake in said.errors or ():
        assert len(mistake.pointer) <= POINTER_LENGTH
        if len(mistake.pointer) < POINTER_LENGTH:
            resolve(mistake.pointer, sent)
        assert CANARY not in mistake.message
    assert CANARY not in write_answer(replace(said, errors=UNSET)).decode()
    assert CANARY not in str(response.headers)
    return said


def array(tensor: Any) -> NDArray[Any]:
    """A tensor of a JSON answer, in either encoding, as an array."""
    kind = np.dtype(tensor["dtype"]).newbyteorder("<")
    if tensor["encoding"] == "base64":
        flat = np.frombuffer(base64.b64decode(tensor["data"], validate=True), kind)
        return flat.reshape(tensor["shape"])
    values = np.array(tensor["data"], kind)
    assert list(values.shape) == tensor["shape"]
    return values


def arrays(answer: Any, path: str = "") -> dict[str, NDArray[Any]]:
    """Every tensor of a JSON answer, by its path."""
    if isinstance(answer, dict) and "encoding" in answer:
        return {path: array(answer)}
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(answer, dict):
        items = iter(answer.items())
    elif isinstance(answer, list):
        items = iter(enumerate(answer))
    found: dict[str, NDArray[Any]] = {}
    for name, item in items:
        found |= arrays(item, f"{path}.{name}".lstrip("."))
    return found


def unpack(content: bytes) -> tuple[Any, dict[str, NDArray[Any]]]:
    """The JSON part and the tensors of a safetensors answer."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return json.loads(header["__metadata__"]["response"]), load(content)


def restored(part: Any, tensors: dict[str, NDArray[Any]]) -> Any:
    """The JSON answer that corresponds to a safetensors answer."""
    if isinstance(part, dict) and "tensor" in part:
        values = tensors[part["tensor"]]
        assert part == {
            "dtype": values.dtype.name,
            "shape": list(values.shape),
            "tensor": part["tensor"],
        }
        return {
            "dtype": part["dtype"],
            "shape": part["shape"],
            "encoding": "json",
            "data": values.tolist(),
        }
    if isinstance(part, dict):
        return {name: restored(item, tensors) for name, item in part.items()}
    if isinstance(part, list):
        return [restored(item, tensors) for item in part]
    return part


class Log:
    """The output of a server."""

    def __init__(self, running: Served) -> None:
        self._running = running

    @property
    def text(self) -> str:
        """Everything printed so far."""
        return self._running.output

    def await_request(self, request_id: str, seconds: float = 20.0) -> dict[str, Any]:
        """The log line of one request, in the JSON format."""

        def line() -> dict[str, Any] | None:
            wanted = [text for text in self.text.splitlines() if f'"{request_id}"' in text]
            return next((json.loads(text) for text in wanted if '"request"' in text), None)

        return until(line, seconds)

    def end(self) -> str:
        """Everything printed, after waiting for the process to end."""
        self._running.process.wait(10.0)
        return self.text


def until(found: Callable[[], T | None], seconds: float = 20.0) -> T:
    """The first value other than None that `found` returns within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (value := found()) is not None:
            return value
        time.sleep(0.01)
    raise AssertionError("it did not come in time")


def listening(running: Served) -> None:
    """Wait until the server answers `/livez`."""

    def live() -> bool | None:
        try:
            return httpx.get(f"{running.url}/livez").is_success or None
        except httpx.TransportError:
            return None

    until(live, 60.0)


def log_of(running: Served) -> Log:
    """The log of a running server."""
    return Log(running)


@contextmanager
def client_of(running: Served, key: str | None = None) -> Iterator[httpx.Client]:
    """A client of a server, with an API key if given."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=running.url, headers=headers, timeout=120.0) as client:
        yield client


def metric(client: httpx.Client, sample: str) -> float:
    """The value of one sample at `/metrics`, over all replicas; 0 if the sample is absent."""
    text = REPLICA.sub("", client.get("/metrics").text).replace("{,", "{").replace("{}", "")
    found = (line.rpartition(" ") for line in text.splitlines())
    return sum(float(value) for name, _, value in found if name == sample)
