"""Hostile bodies, paths and headers: each gets its problem, and no answer repeats the input."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from schemas.common import read_answer
from schemas.problems import PROBLEMS, Problem
from tests.api.test_bodies import PATHS, post
from tests.api.wire import CANARY, RETRYABLE, problem
from tests.service_process import Served

GOOD = {"context": f"abc {CANARY}", "query": " cd"}
TEXT = json.dumps(GOOD)
MALFORMED: dict[str, bytes] = {
    "byte order mark": TEXT.encode("utf-8-sig"),
    "UTF-16, little": TEXT.encode("utf-16-le"),
    "UTF-16, big": TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
    "overlong UTF-8": TEXT.replace("abc", "a@c").encode().replace(b"@", b"\xc0\xaf"),
    "a surrogate in UTF-8": TEXT.encode().replace(b"abc", b"a\xed\xa0\x80c"),
    "a code point beyond Unicode": TEXT.encode().replace(b"abc", b"a\xf4\x90\x80\x80c"),
    "a raw line feed": TEXT.replace("abc", "a\nc").encode(),
    "a comment": TEXT.encode() + b"// zqcanaryqz",
    "a number with a leading zero": b'{"context": [01], "query": " zqcanaryqz"}',
    "an unfinished number": b'{"context": "zqcanaryqz", "query": "b", "layers": [1e',
    "objects 300 deep": b'{"context": ' + b'{"a":' * 300 + b"1" + b"}" * 300 + b', "query": "b"}',
    "compressed": gzip.compress(TEXT.encode()),
    "10,000 blanks": b" " * 10_000,
}
WRONG: dict[str, bytes] = {
    "a repeated field": b'{"context": "zqcanaryqz", "query": "b", "context": "c"}',
    "a repeated field of one value": b'{"context": "zqcanaryqz", "query": "b", "query": "b"}',
    "a repeated field, one escaped": b'{"context": "zqcanaryqz", "query": "b", "qu\\u0065ry": "b"}',
    "a repeated field in a nested object": b'{"context": "abc", "query": "b", "baseline": '
    b'{"context": "zqcanaryqz", "context": "d"}}',
    "NUL in a name": b'{"context": "zqcanaryqz", "query": "b", "\\u0000": 1}',
    "a surrogate in a name": b'{"context": "zqcanaryqz", "query": "b", "\\ud800": 1}',
    "5,000 digits": b'{"context": ["zqcanaryqz", 1' + b"0" * 5000 + b'], "query": "b"}',
    "5,000 digits of a float": b'{"context": [1.' + b"0" * 5000 + b'], "query": "zqcanaryqz"}',
    "negative overflow": b'{"context": [-1e400], "query": "zqcanaryqz"}',
    "a huge exponent": b'{"context": [1e999999999999], "query": "zqcanaryqz"}',
    "an object for a list": b'{"context": "zqcanaryqz", "query": "b", "layers": {"0": 1}}',
    "100,000 mistakes": b'{"context": [' + b'"zqcanaryqz",' * 70_000 + b'0], "query": "b"}',
    "10,000 unknown fields": json.dumps(GOOD | {f"n{i}": CANARY for i in range(10_000)}).encode(),
}
LARGE: dict[str, dict[str, Any]] = {
    "a long text": {"context": CANARY * 20_000, "query": "b"},
    "a long query": {"context": "a", "query": " " * 200_000},
    "many ids": {"context": [1] * 300_000, "query": "b"},
    "many spans": {"context": "abcd", "query": "b", "baseline": {"without": [[0, 1]] * 90_000}},
    "many layers": {"context": "abcd", "query": "b", "layers": [0] * 300_000},
    "many positions": {"context": "abcd", "query": "b", "positions": [0] * 300_000},
    "many probes": {"context": "abcd", "query": "b", "probe_queries": [CANARY] * 60_000},
}
TARGETS = [
    "/%00",
    "/%ff%fe/zqcanaryqz",
    "/%ed%a0%80zqcanaryqz",
    "/v1/%2e%2e/zqcanaryqz",
    "//zqcanaryqz//v1",
    "/problems/%00zqcanaryqz",
    "/problems/%0d%0aX-Injected:%20zqcanaryqz",
    "/problems/" + CANARY * 1000,
    "/problems/%F0%9F%99%82",
    "/docs/assets/%00zqcanaryqz",
    "/docs/assets/" + CANARY * 1000,
    "/docs/assets/..%2f..%2fzqcanaryqz",
    "/docs/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/docs/assets//etc/passwd",
    "/docs/assets",
    "/docs/zqcanaryqz",
    "/livez/zqcanaryqz?%00=%ff",
    "/v1/model%20?zqcanaryqz",
]
QUERIES = ["?zqcanaryqz=1", "?%00=%ff", "?" + "&" * 5000, "?a[]=1&a[]=2&=", "?%zz%"]
METHODS = ["HEAD", "OPTIONS", "TRACE", "PUT", "PATCH", "DELETE"]


@pytest.fixture(autouse=True)
def quiet(tiny_service: Served) -> Iterator[None]:
    """Check that the log holds no part of the input and no traceback."""
    yield
    said = tiny_service.log.read_text()
    assert CANARY not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_json_returns_400_without_the_input(
    tiny_client: httpx.Client, body: bytes
) -> None:
    """A body that is not JSON in UTF-8 returns 400 `malformed_json` and is not repeated."""
    said = post(tiny_client, PATHS["updates"], body)
    problem(said, "malformed_json")
    assert CANARY not in said.text


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_invalid_request_returns_short_422(tiny_client: httpx.Client, body: bytes) -> None:
    """JSON that is no valid request returns a short 422 with short pointers."""
    said = post(tiny_client, PATHS["updates"], body)
    assert said.status_code == 422
    read = read_answer(Problem, said.content)
    assert read.code == "validation"
    assert 1 <= len(read.errors or ()) <= 16
    assert CANARY not in said.text
    assert len(said.content) < 5000


@pytest.mark.parametrize("sent", LARGE.values(), ids=LARGE)
def test_oversized_fields_are_refused_not_failed(
    tiny_client: httpx.Client, sent: dict[str, Any]
) -> None:
    """A body with far too many items or characters is refused with 413 or 422, never 500."""
    said = tiny_client.post(PATHS["updates"], json=sent)
    assert said.status_code in (413, 422), said.text[:300]
    read = read_answer(Problem, said.content)
    assert read.code in (
        "prompt_too_long",
        "validation",
        "bad_span",
        "too_many_items",
        "body_too_large",
    )
    assert CANARY not in said.text
    assert len(said.content) < 5000


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_path_returns_problem_without_the_path(
    tiny_client: httpx.Client, method: str, target: str
) -> None:
    """A path that does not exist returns a problem that does not repeat the path."""
    said = tiny_client.request(method, target, json={})
    problem(said, "not_found" if said.status_code == 404 else "method_not_allowed")
    assert CANARY not in said.text + str(said.headers)


@pytest.mark.parametrize("query", QUERIES)
def test_query_strings_are_ignored(tiny_client: httpx.Client, query: str) -> None:
    """The service ignores any query string."""
    assert tiny_client.get(f"/livez{query}").status_code == 200
    answer = tiny_client.post(PATHS["tokenize"] + query, json={"prompts": ["a"]})
    assert answer.status_code == 200


HAVE_NOT = [
    (method, path)
    for path in (*PATHS.values(), "/v1/model", "/livez", "/metrics", "/")
    for method in METHODS
    if method != "HEAD" or path in PATHS.values()
]


@pytest.mark.parametrize(("method", "path"), HAVE_NOT)
def test_unsupported_method_returns_405_with_allow(
    tiny_client: httpx.Client, method: str, path: str
) -> None:
    """An unsupported method returns 405 with `Allow`, and no header of the request is repeated."""
    said = tiny_client.request(method, path, headers={"X-Canary": CANARY})
    assert said.status_code == 405
    assert sorted(said.headers["allow"].split(", ")) in (["GET", "HEAD"], ["POST"])
    assert said.headers["content-type"] == "application/problem+json"
    assert CANARY not in said.text + str(said.headers)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip", CANARY])
def test_compressed_body_returns_415(tiny_client: httpx.Client, encoding: str) -> None:
    """A compressed body returns 415 unread, so that it cannot expand in memory."""
    packed = gzip.compress(TEXT.encode()) if "gzip" in encoding else zlib.compress(TEXT.encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    said = tiny_client.post(PATHS["updates"], content=packed, headers=headers)
    problem(said, "unsupported_media_type")
    plain = {"Content-Type": "application/json", "Content-Encoding": "identity"}
    assert tiny_client.post(PATHS["updates"], content=TEXT, headers=plain).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Accept", f"{CANARY}/*;q=nan, */*;q=\u00e9"),
        ("Accept", "," * 5000),
        ("Accept", "*/*;q=" + "9" * 5000),
        ("Authorization", f"Bearer {CANARY}\u00ff"),
        ("Authorization", f"{CANARY} " * 100 + CANARY),
        ("X-Request-ID", CANARY + "\u00ff"),
        ("Content-Type", f"application/json; charset={CANARY}"),
        ("Content-Type", CANARY * 100),
        ("Range", f"bytes={CANARY}"),
        ("If-Modified-Since", CANARY),
        ("Cookie", CANARY),
        ("Origin", f"https://{CANARY}"),
        ("X-Forwarded-For", CANARY),
        ("Transfer-Encoding", "chunked"),
    ],
)
@pytest.mark.parametrize(
    "path", [PATHS["tokenize"], "/v1/model", "/nope", "/docs/assets/swagger-ui.css"]
)
def test_hostile_headers_are_not_repeated(
    tiny_client: httpx.Client, path: str, name: str, value: str
) -> None:
    """A hostile header is ignored or refused, and the answer does not repeat it."""
    method = "POST" if path in PATHS.values() else "GET"
    content = b'{"prompts": ["a"]}' if method == "POST" else None
    headers = {"Content-Type": "application/json"} | {name: value}
    said = tiny_client.request(
        method,
        path,
        content=iter([content or b""]) if name == "Transfer-Encoding" else content,
        headers=[(field.encode(), text.encode("latin-1")) for field, text in headers.items()],
    )
    assert said.status_code in (200, 404, 406, 415)
    assert CANARY not in said.text + str(said.headers)


def test_only_retryable_statuses_are_marked_retryable() -> None:
    """Exactly the codes that the service or time can mend are marked retryable."""
    again = {code for code, kind in PROBLEMS.items() if kind.retryable}
    assert again == {code for code, kind in PROBLEMS.items() if kind.status in RETRYABLE}
    assert "request_timeout" in again
