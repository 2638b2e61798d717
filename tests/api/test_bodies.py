"""Request bodies: malformed JSON, invalid requests, and refusals that do not repeat the input."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from schemas.common import UNSET
from tests.api.conftest import NARROW, Heard
from tests.api.wire import CANARY, problem, resolve

PAIR = {"context": f"abc the {CANARY}", "query": " cd"}
PATHS = {
    "updates": "/v1/weight-updates",
    "checks": "/v1/equivalence-checks",
    "activations": "/v1/activations",
    "trajectories": "/v1/trajectories",
    "attributions": "/v1/attributions",
    "tokenize": "/v1/tokenize",
    "completions": "/v1/completions",
}
DEEP = 100_000

MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "unfinished": b'{"context": "a"',
    "trailing comma": b'{"context": "a", "query": "b",}',
    "single quotes": b"{'context': 'a', 'query': 'b'}",
    "two documents": b'{"context": "a", "query": "b"}{}',
    "latin-1": '{"context": "zqcanaryqz é", "query": "b"}'.encode("latin-1"),
    "utf-16": json.dumps(PAIR).encode("utf-16"),
    "a NUL byte": b'{"context": "a\x00", "query": "b"}',
    "nested 100,000 deep": b"[" * DEEP + b"]" * DEEP,
    "nested 500 deep": b'{"context": ' + b"[" * 500 + b"]" * 500 + b', "query": "b"}',
    "nested 500 deep in an unknown field": json.dumps(PAIR)[:-1].encode()
    + b', "x": '
    + b"[" * 500
    + b"]" * 500
    + b"}",
}

LITERALS = ["NaN", "Infinity", "-Infinity", "1e400"]
HUGE = [10**30, 2**63, -(2**64), 10**400]

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("updates", {"layers": False}, "/layers"),
    ("updates", {"layers": 1}, "/layers"),
    ("updates", {"layers": None}, "/layers"),
    ("updates", {"layers": CANARY}, "/layers"),
    ("updates", {"layers": {CANARY: 1}}, "/layers"),
    ("updates", {"layers": [False]}, "/layers/0"),
    ("updates", {"layers": [0, 1.0]}, "/layers/1"),
    ("updates", {"layers": [0, 0.5]}, "/layers/1"),
    ("updates", {"layers": [CANARY]}, "/layers/0"),
    ("updates", {"layers": [[0]]}, "/layers/0"),
    ("updates", {"layers": []}, "/layers"),
    ("updates", {"layers": [1, 1]}, "/layers"),
    ("updates", {"layers": [0, -3]}, "/layers"),
    *[("updates", {"layers": [huge]}, "/layers/0") for huge in HUGE],
    ("updates", {"positions": True}, "/positions"),
    ("updates", {"positions": CANARY}, "/positions"),
    ("updates", {"positions": [0.0]}, "/positions/0"),
    ("updates", {"positions": []}, "/positions"),
    ("updates", {"positions": [0, 0]}, "/positions"),
    ("updates", {"context": None}, "/context"),
    ("updates", {"context": 7}, "/context"),
    ("updates", {"context": {CANARY: CANARY}}, "/context"),
    ("updates", {"context": [1.0]}, "/context/0"),
    ("updates", {"context": [1, True]}, "/context/1"),
    ("updates", {"context": [CANARY]}, "/context/0"),
    *[("updates", {"query": [1, huge]}, "/query/1") for huge in HUGE],
    ("updates", {"baseline": CANARY}, "/baseline"),
    ("updates", {"baseline": [[0, 1]]}, "/baseline"),
    ("updates", {"baseline": {}}, "/baseline"),
    ("updates", {"baseline": {CANARY: 1, "context": "a"}}, f"/baseline/{CANARY}"),
    ("updates", {"baseline": {"without": [[0, 1]], "context": "a"}}, "/baseline/context"),
    ("updates", {"baseline": {"without": CANARY}}, "/baseline/without"),
    ("updates", {"baseline": {"without": [[0]]}}, "/baseline/without/0"),
    ("updates", {"baseline": {"without": [[0, 1, 2]]}}, "/baseline/without/0"),
    ("updates", {"baseline": {"without": [[0, 1], [2, CANARY]]}}, "/baseline/without/1/1"),
    ("updates", {"baseline": {"without": [[0, 1.0]]}}, "/baseline/without/0/1"),
    ("updates", {"baseline": {"context": None}}, "/baseline/context"),
    ("updates", {"stream": CANARY}, "/stream"),
    ("updates", {"include": "factors"}, "/include"),
    ("updates", {"include": [CANARY]}, "/include/0"),
    ("updates", {"encoding": CANARY}, "/encoding"),
    ("updates", {"a/b~c": CANARY}, "/a~1b~0c"),
    ("updates", {"": CANARY}, "/"),
    ("updates", {"surprise": CANARY}, "/surprise"),
    ("checks", {"scope": CANARY}, "/scope"),
    ("checks", {"precision": CANARY}, "/precision"),
    ("checks", {"apply": CANARY}, "/apply"),
    ("checks", {"controls": 1}, "/controls"),
    ("checks", {"controls": CANARY}, "/controls"),
    ("checks", {"tolerance": 0}, "/tolerance"),
    ("checks", {"tolerance": -1e-5}, "/tolerance"),
    ("checks", {"tolerance": CANARY}, "/tolerance"),
    ("checks", {"tolerance": True}, "/tolerance"),
    ("checks", {"include": []}, "/include"),
    ("updates", {"probe_queries": CANARY}, "/probe_queries"),
    ("updates", {"probe_queries": ["a", None]}, "/probe_queries/1"),
    ("updates", {"probe_queries": [[CANARY]]}, "/probe_queries/0/0"),
    ("trajectories", {"spans": CANARY}, "/spans"),
    ("trajectories", {"spans": [[0, CANARY]]}, "/spans/0/1"),
    ("attributions", {"spans": [[0, 1], 2]}, "/spans/1"),
    ("attributions", {"include": []}, "/include"),
    ("activations", {"prompts": []}, "/prompts"),
    ("activations", {"prompts": CANARY}, "/prompts"),
    ("activations", {"prompts": [[1.0]]}, "/prompts/0/0"),
    ("activations", {"prompts": [CANARY, None]}, "/prompts/1"),
    ("activations", {"hook_points": CANARY}, "/hook_points"),
    ("activations", {"hook_points": []}, "/hook_points"),
    ("activations", {"hook_points": [1]}, "/hook_points/0"),
    ("activations", {"reduce": CANARY}, "/reduce"),
    ("tokenize", {"prompts": [CANARY], "query": CANARY}, ""),
    ("tokenize", {"context": CANARY}, ""),
    ("tokenize", {"prompts": [7]}, "/prompts/0"),
    ("tokenize", {}, ""),
    ("completions", {"prompt": None}, "/prompt"),
    ("completions", {"prompt": [CANARY]}, "/prompt/0"),
    ("completions", {"prompt": [[1]]}, "/prompt/0"),
    ("completions", {"max_tokens": 0}, "/max_tokens"),
    ("completions", {"max_tokens": 1.5}, "/max_tokens"),
    ("completions", {"temperature": -1}, "/temperature"),
    ("completions", {"top_p": 0}, "/top_p"),
    ("completions", {"seed": -1}, "/seed"),
    ("completions", {"seed": 2**63}, "/seed"),
    ("completions", {"logprobs": 21}, "/logprobs"),
    ("completions", {"logprobs": True}, "/logprobs"),
    ("completions", {"stop": ["a"] * 5}, "/stop"),
    ("completions", {"stop": ""}, "/stop"),
    ("completions", {"stop": [CANARY, 1]}, "/stop/1"),
    ("completions", {"stream": CANARY}, "/stream"),
    ("completions", {"stream_options": {CANARY: True}}, f"/stream_options/{CANARY}"),
    ("completions", {"patch": CANARY}, "/patch"),
    ("completions", {"patch": {}}, "/patch"),
    ("completions", {"patch": {"context": "a", "recompute": CANARY}}, "/patch/recompute"),
    ("completions", {"patch": {"context": "a", "baseline": CANARY}}, "/patch/baseline"),
    ("completions", {"patch": {"adapter": 7}}, "/patch/adapter"),
    ("completions", {"patch": {"adapter": "a", "scale": 1e9}}, "/patch/scale"),
    ("completions", {"capture": {"hook_points": [CANARY]}}, "/capture/hook_points/0"),
    ("completions", {"capture": {"layers": [0.5]}}, "/capture/layers/0"),
    ("completions", {"messages": [CANARY]}, "/messages"),
]
FILLED: dict[str, dict[str, Any]] = {
    "updates": PAIR,
    "checks": PAIR,
    "trajectories": PAIR,
    "attributions": PAIR,
    "activations": {"prompts": [CANARY]},
    "tokenize": {},
    "completions": {"prompt": CANARY},
}


def post(client: httpx.Client, path: str, body: bytes) -> httpx.Response:
    """Send bytes as JSON."""
    return client.post(path, content=body, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_json_returns_400(tiny_client: httpx.Client, body: bytes) -> None:
    """A body that is not JSON in UTF-8, or nests too deep, returns 400 `malformed_json`."""
    assert not problem(post(tiny_client, PATHS["updates"], body), "malformed_json").errors


@pytest.mark.parametrize(("resource", "changes", "where"), WRONG)
def test_one_mistake_gives_one_error(
    tiny_client: httpx.Client, resource: str, changes: dict[str, Any], where: str
) -> None:
    """One mistake in a body gives one error, whose pointer resolves in the sent body."""
    sent = FILLED[resource] | changes
    said = problem(tiny_client.post(PATHS[resource], json=sent), "validation", sent)
    assert said.errors
    assert [mistake.pointer for mistake in said.errors] == [where]


@pytest.mark.parametrize("field", ["context", "query", "prompts"])
def test_missing_field_is_named(tiny_client: httpx.Client, field: str) -> None:
    """A missing field is named, and the pointer is to the object that lacks it."""
    resource = "activations" if field == "prompts" else "updates"
    sent = {name: value for name, value in FILLED[resource].items() if name != field}
    said = problem(tiny_client.post(PATHS[resource], json=sent), "validation", sent)
    assert said.errors
    assert [mistake.pointer for mistake in said.errors] == [""]
    assert field in said.errors[0].message


@pytest.mark.parametrize("number", LITERALS)
@pytest.mark.parametrize(
    ("resource", "field"), [("checks", "tolerance"), ("updates", "layers"), ("updates", "query")]
)
def test_nan_and_infinity_return_422(
    tiny_client: httpx.Client, resource: str, field: str, number: str
) -> None:
    """NaN, infinities and overflowing numbers in a number's place return 422."""
    value = number if field == "tolerance" else f"[{number}]"
    rest = {name: text for name, text in FILLED[resource].items() if name != field}
    body = json.dumps(rest)[:-1] + f', "{field}": {value}}}'
    said = problem(
        post(tiny_client, PATHS[resource], body.encode()), "validation", json.loads(body)
    )
    assert said.errors
    assert [mistake.pointer.split("/")[1] for mistake in said.errors] == [field]


@pytest.mark.parametrize("text", [r"\ud800", r"\udc00\ud800", r"zqcanaryqz\uDFFF"])
def test_lone_surrogates_return_422(tiny_client: httpx.Client, text: str) -> None:
    """Half of a surrogate pair is valid JSON but not tokenisable text, so it returns 422."""
    body = f'{{"context": "{text}", "query": "b"}}'.encode()
    problem(post(tiny_client, PATHS["updates"], body), "validation", json.loads(body))


def test_integer_of_5000_digits_returns_422(tiny_client: httpx.Client) -> None:
    """An integer of 5,000 digits is valid JSON, so it returns 422."""
    body = b'{"context": "a", "query": "b", "layers": [1' + b"0" * 5000 + b"]}"
    sent = {"context": "a", "query": "b", "layers": [10]}
    problem(post(tiny_client, PATHS["updates"], body), "validation", sent)


@pytest.mark.parametrize("body", [b"7", b"null", b'"zqcanaryqz"', b'[{"context": "zqcanaryqz"}]'])
def test_json_that_is_no_object_returns_422(tiny_client: httpx.Client, body: bytes) -> None:
    """JSON that is not an object gives one error, for the whole document."""
    said = problem(post(tiny_client, PATHS["updates"], body), "validation", json.loads(body))
    assert said.errors
    assert [mistake.pointer for mistake in said.errors] == [""]


def test_long_field_name_is_cut_in_the_pointer(tiny_client: httpx.Client) -> None:
    """A field name of the request is cut to 64 characters in a pointer."""
    sent = PAIR | {"n" * 500: CANARY}
    said = problem(tiny_client.post(PATHS["updates"], json=sent), "validation", sent)
    assert said.errors
    assert said.errors[0].pointer == "/" + "n" * 63


def test_many_mistakes_return_a_short_problem(tiny_client: httpx.Client) -> None:
    """A body with 5,000 mistakes returns a problem of less than 5,000 bytes."""
    sent = PAIR | {"layers": [CANARY] * 5000}
    response = tiny_client.post(PATHS["updates"], json=sent)
    problem(response, "validation", sent)
    assert len(response.content) < 5000


def test_each_mistake_has_its_error(tiny_client: httpx.Client) -> None:
    """Each of several mistakes has its own error."""
    sent = PAIR | {"layers": [0.5], "stream": 1, "surprise": 2}
    said = problem(tiny_client.post(PATHS["updates"], json=sent), "validation", sent)
    places = {mistake.pointer for mistake in said.errors or ()}
    assert places == {"/layers/0", "/stream", "/surprise"}
    assert resolve("/layers/0", sent) == 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"context": "a\x00b"},
        {"baseline": {"without": [[0, 7]]}},
        {"positions": [0], "layers": [-1, 0]},
        {"context": "<|endoftext|>the 🙂"},
    ],
)
def test_unusual_valid_bodies_are_accepted(
    tiny_client: httpx.Client, changes: dict[str, Any]
) -> None:
    """NUL in a string, spans as arrays, negative layers and any Unicode are valid."""
    response = tiny_client.post(PATHS["updates"], json=PAIR | changes)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("content_type", "accepted"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("Application/JSON", True),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
        ("application/jsonl", False),
        ("multipart/form-data; boundary=b", False),
    ],
)
def test_body_needs_json_content_type(
    tiny_client: httpx.Client, content_type: str, accepted: bool
) -> None:
    """A body is accepted only with the content type `application/json`."""
    response = tiny_client.post(
        PATHS["tokenize"],
        content=json.dumps({"prompts": ["a"]}),
        headers={"Content-Type": content_type},
    )
    if accepted:
        assert response.status_code == 200
    else:
        problem(response, "unsupported_media_type")


@pytest.mark.parametrize("chunked", [False, True])
def test_body_above_the_limit_returns_413(narrow: Heard, chunked: bool) -> None:
    """A body above `max_body_bytes` returns 413, with a Content-Length or in chunks."""
    body = json.dumps({"prompts": [CANARY * 200]}).encode()
    pieces = (body[i : i + 500] for i in range(0, len(body), 500))
    response = narrow.client.post(
        PATHS["tokenize"],
        content=pieces if chunked else body,
        headers={"Content-Type": "application/json"},
    )
    said = problem(response, "body_too_large")
    assert said.limit == NARROW["max_body_bytes"]
    assert said.limit is not UNSET
    assert said.actual is not UNSET
    assert said.limit < said.actual <= len(body)
