"""NDJSON over HTTP: each line means what it would mean as its own request."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from schemas.common import UNSET, read_answer
from schemas.lines import Line
from schemas.problems import Problem
from schemas.weight_updates import WeightUpdatesAnswer
from tests.api.by_hand import NDJSON, lines_of
from tests.api.conftest import NARROW, POISON, Heard
from tests.api.test_bodies import MALFORMED, PATHS
from tests.api.test_request_log import TIMINGS
from tests.api.wire import CANARY, SAFETENSORS, STATUS, metric, problem

PAIR = {"context": "abc", "query": " cd", "layers": [0], "include": []}
FORWARDS = "deltaw_forward_seconds_count"


def post(
    client: httpx.Client, resource: str, body: bytes | Iterable[bytes], **headers: str
) -> httpx.Response:
    """Send lines; an iterable is sent in chunks."""
    merged = httpx.Headers(NDJSON)
    merged.update(headers)
    return client.post(PATHS[resource], content=body, headers=merged)


def lines(response: httpx.Response) -> list[Any]:
    """The answer lines of a response."""
    assert response.status_code == 200, response.text[:500]
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["cache-control"] == "no-store"
    assert response.text == "" or response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


def codes(found: Iterable[Any]) -> list[str]:
    """The problem code of each line; empty for an answer."""
    return [line["body"].get("code", "") for line in found]


def test_good_and_bad_lines_are_answered_side_by_side(tiny_heard: Heard) -> None:
    """A bad line gets its problem as its line, also the first one; the others are answered."""
    bad = {"context": CANARY, "query": 1}
    body = (
        lines_of(bad, PAIR)
        + b"\n \t\r\n"
        + lines_of(PAIR | {"layers": [99]}, PAIR).replace(b"\n", b"\r\n")
        + json.dumps(PAIR).encode()
    )
    found = lines(post(tiny_heard.client, "updates", body, **{"X-Request-ID": "many"}))
    assert [line["index"] for line in found] == [0, 1, 2, 3, 4]
    assert codes(found) == ["validation", "", "layer_out_of_range", "", ""]
    for line in found:
        code = line["body"].get("code")
        assert line["status"] == (STATUS[code] if code else 200)
        assert line["request_id"] == f"many-{line['index']}"
        assert tuple(line["timings_ms"]) == TIMINGS
        assert line["body"].get("request_id", line["request_id"]) == line["request_id"]
        assert CANARY not in json.dumps(line)
    assert found[1]["timings_ms"]["forward"] > 0.0
    assert found[0]["body"]["errors"][0]["pointer"] == "/query"
    logged = tiny_heard.log.await_request("many")
    assert (logged["status"], logged["lines"], logged["failed_lines"]) == (200, 5, 2)
    assert logged["rows"] >= 3 * 5
    assert set(logged["timings_ms"]) == set(TIMINGS)


def test_answer_lines_follow_their_schema(tiny_heard: Heard) -> None:
    """Each line reads as a `Line` of the resource's answer or of a problem."""
    response = post(tiny_heard.client, "updates", lines_of(PAIR, {}))
    good, bad = (
        read_answer(Line[WeightUpdatesAnswer], line) for line in response.content.splitlines()
    )
    assert isinstance(good.body, WeightUpdatesAnswer)
    assert isinstance(bad.body, Problem)
    assert bad.request_id == bad.body.request_id


@pytest.mark.parametrize("body", [b"", b"\n \r\n\n"])
def test_request_without_lines_returns_no_lines(tiny_heard: Heard, body: bytes) -> None:
    """An empty file of questions has an empty file of answers."""
    assert lines(post(tiny_heard.client, "updates", body)) == []


@pytest.mark.parametrize("name", [name for name in MALFORMED if name != "empty"])
def test_malformed_line_spoils_no_other(tiny_heard: Heard, name: str) -> None:
    """A line that is not JSON in UTF-8 is `malformed_json`, and the next one is answered."""
    body = MALFORMED[name] + b"\n" + lines_of(PAIR)
    found = codes(lines(post(tiny_heard.client, "updates", body)))
    assert found[0] == "malformed_json"
    assert found[-1] == ""


def test_encoding_is_chosen_by_each_line(tiny_heard: Heard) -> None:
    """Tensors in lines are JSON or base64, whichever the line asks for."""
    asked = [{"prompts": ["ab"], "layers": [0], "encoding": one} for one in ("json", "base64")]
    found = lines(post(tiny_heard.client, "activations", lines_of(*asked)))
    values = [line["body"]["prompts"][0]["activations"][0]["values"] for line in found]
    assert [one["encoding"] for one in values] == ["json", "base64"]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Accept": SAFETENSORS}, "not_acceptable"),
        ({"Accept": "application/json"}, "not_acceptable"),
        ({"Content-Encoding": "gzip"}, "unsupported_media_type"),
        ({"Content-Type": "application/jsonl"}, "unsupported_media_type"),
        ({"Authorization": "Bearer no"}, "wrong_key"),
    ],
)
def test_refused_request_gets_a_problem_with_its_status(
    narrow: Heard, headers: dict[str, str], code: str
) -> None:
    """A mistake in the whole request gets a problem of its own, and no line is read."""
    problem(post(narrow.client, "updates", lines_of(PAIR), **headers), code)


@pytest.mark.parametrize("accept", ["*/*", "application/x-ndjson", "application/*;q=0.1"])
def test_accept_may_name_ndjson(tiny_heard: Heard, accept: str) -> None:
    """`Accept` names NDJSON or a range that contains it."""
    assert lines(post(tiny_heard.client, "tokenize", lines_of({"prompts": ["a"]}), Accept=accept))


def test_body_above_max_ndjson_bytes_is_refused(narrow: Heard) -> None:
    """Too many bytes in all lines are refused while they arrive, with or without a length."""
    body = [b" " * 1000 + b"\n"] * 9
    for sent in (b"".join(body), iter(body)):
        said = problem(post(narrow.client, "updates", sent), "body_too_large")
        assert said.limit == NARROW["max_ndjson_bytes"]
        assert said.actual is not UNSET


def test_more_lines_than_max_lines_are_refused(narrow: Heard) -> None:
    """One line more than `max_lines` refuses the request; as many are answered."""
    line = lines_of({"prompts": ["a"]})
    most = NARROW["max_lines"]
    assert len(lines(post(narrow.client, "tokenize", line * most))) == most
    said = problem(post(narrow.client, "tokenize", line * (most + 1)), "too_many_lines")
    assert (said.limit, said.actual) == (most, most + 1)


def test_limits_of_one_request_hold_for_each_line(narrow: Heard) -> None:
    """A line that exceeds a limit is refused alone, with the limit."""
    asked: list[tuple[Any, str]] = [
        ({"prompts": ["ab"] * 2, "layers": [0]}, ""),
        ({"prompts": ["ab"] * 3, "layers": [0]}, "too_many_items"),
        ({"prompts": ["a" * 1990]}, "body_too_large"),
        ({"prompts": [[1, 2] * 21], "layers": [0]}, "never_fits"),
        ({"prompts": ["cd"], "layers": [0]}, ""),
    ]
    found = lines(post(narrow.client, "activations", lines_of(*(body for body, _ in asked))))
    assert codes(found) == [code for _, code in asked]
    assert found[2]["status"] == 413
    assert found[2]["body"]["limit"] == NARROW["max_body_bytes"]


def test_error_of_one_line_of_a_batch_hits_only_that_line(narrow: Heard) -> None:
    """A NaN in one pair of a batch is that pair's problem; the others get their numbers."""
    asked = [PAIR | {"context": context} for context in ("a", "ab", POISON, "abc", "b")]
    before = metric(narrow.client, 'deltaw_rejected_total{reason="non_finite"}')
    found = lines(post(narrow.client, "updates", lines_of(*asked)))
    assert codes(found) == ["", "", "non_finite", "", ""]
    after = metric(narrow.client, 'deltaw_rejected_total{reason="non_finite"}')
    assert after == before + 1
    for line, body in zip(found, asked, strict=True):
        if line["status"] == 200:
            alone = narrow.client.post(PATHS["updates"], json=body).json()
            assert line["body"]["tokens"] == alone["tokens"]
            (one,), (other,) = line["body"]["updates"], alone["updates"]
            assert one["norm"] == pytest.approx(other["norm"], rel=1e-4)


def test_equal_options_share_forwards(tiny_heard: Heard) -> None:
    """Lines that differ only in their prompts are batched."""
    asked = [PAIR | {"context": [1 + i, 2, 3], "query": [4 + i]} for i in range(60)]
    before = metric(tiny_heard.client, FORWARDS)
    found = lines(post(tiny_heard.client, "updates", lines_of(*asked)))
    assert codes(found) == [""] * 60
    assert metric(tiny_heard.client, FORWARDS) - before <= 15


def test_other_options_are_not_batched(tiny_heard: Heard) -> None:
    """Each of these lines has other options than the one before, so it has a forward of its
    own."""
    asked = [PAIR | {"context": [9, 2, 3 + i], "layers": [i % 2]} for i in range(6)]
    before = metric(tiny_heard.client, FORWARDS)
    assert codes(lines(post(tiny_heard.client, "updates", lines_of(*asked)))) == [""] * 6
    assert metric(tiny_heard.client, FORWARDS) - before == 6


def test_service_reads_a_body_whose_answers_nobody_reads(tiny_heard: Heard) -> None:
    """A client may send its whole body before it reads, however large the answers are."""
    line = lines_of({"prompts": ["abcdefgh" * 64]})
    count = 400
    body = line * count
    parts = urlsplit(tiny_heard.served.url)
    head = (
        f"POST /v1/tokenize HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    received = bytearray()
    with socket.socket() as connection:
        connection.settimeout(20.0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        connection.connect((parts.hostname, parts.port))
        connection.sendall(head.encode() + body)
        while chunk := connection.recv(1 << 20):
            received += chunk
    assert len(received) > 16 * len(body)
    assert received.count(b'"status":200') == count
    assert received.endswith(b"0\r\n\r\n")
