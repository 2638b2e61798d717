"""Problems: every code of the contract's table, caused by real requests."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from schemas.common import UNSET
from schemas.problems import PROBLEMS
from tests.api.conftest import NARROW, POISON, Heard
from tests.api.test_bodies import PATHS
from tests.api.wire import CANARY, RETRYABLE, STATUS, problem

PAIR = {"context": f"abc the {CANARY}", "query": " cd"}
LONG = [1] * 64

REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("updates", {"context": ""}, "empty_context", "/context"),
    ("updates", {"context": []}, "empty_context", "/context"),
    ("updates", {"query": ""}, "empty_query", "/query"),
    ("updates", {"query": []}, "empty_query", "/query"),
    ("checks", {"context": ""}, "empty_context", "/context"),
    ("checks", {"query": []}, "empty_query", "/query"),
    ("activations", {"prompts": ["a", ""]}, "empty_query", "/prompts/1"),
    ("activations", {"prompts": [[]]}, "empty_query", "/prompts/0"),
    ("updates", {"baseline": {"context": ""}}, "empty_context", "/baseline/context"),
    ("updates", {"context": [0, 263]}, "token_out_of_range", "/context/1"),
    ("updates", {"context": [-1]}, "token_out_of_range", "/context/0"),
    ("updates", {"query": [1, 2, 2**53]}, "token_out_of_range", "/query/2"),
    ("updates", {"baseline": {"context": [999]}}, "token_out_of_range", "/baseline/context/0"),
    ("activations", {"prompts": ["a", [0, -5]]}, "token_out_of_range", "/prompts/1/1"),
    ("tokenize", {"prompts": [[263]]}, "token_out_of_range", "/prompts/0/0"),
    ("tokenize", {"context": "a", "query": [-1]}, "token_out_of_range", "/query/0"),
    ("updates", {"layers": [0, 3]}, "layer_out_of_range", "/layers/1"),
    ("checks", {"layers": [-4]}, "layer_out_of_range", "/layers/0"),
    ("activations", {"layers": [2**53]}, "layer_out_of_range", "/layers/0"),
    ("updates", {"query": "ab cd", "positions": [0, 9]}, "position_out_of_range", "/positions/1"),
    ("checks", {"positions": [-9]}, "position_out_of_range", "/positions/0"),
    ("activations", {"prompts": ["aaaa", "a"], "positions": [3]}, "position_out_of_range", ""),
    ("updates", {"context": LONG}, "prompt_too_long", "/context"),
    ("checks", {"context": "x" * 100}, "prompt_too_long", "/context"),
    ("updates", {"baseline": {"context": LONG}}, "prompt_too_long", "/baseline/context"),
    ("activations", {"prompts": ["a", [1] * 65]}, "prompt_too_long", "/prompts/1"),
    ("activations", {"hook_points": ["mlp_in", CANARY]}, "unknown_hook_point", "/hook_points/1"),
    ("activations", {"hook_points": ["logits"]}, "unknown_hook_point", "/hook_points/0"),
    ("updates", {"baseline": {"without": []}}, "bad_span", "/baseline/without"),
    ("updates", {"baseline": {"without": [[1, 1]]}}, "bad_span", "/baseline/without/0"),
    ("updates", {"baseline": {"without": [[2, 1]]}}, "bad_span", "/baseline/without/0"),
    ("updates", {"baseline": {"without": [[-2, 1]]}}, "bad_span", "/baseline/without/0"),
    ("updates", {"baseline": {"without": [[0, 99]]}}, "bad_span", "/baseline/without/0"),
    ("checks", {"baseline": {"without": [[0, 3], [2, 4]]}}, "bad_span", "/baseline/without/1"),
    ("checks", {"baseline": {"without": [[3, 4], [0, 1]]}}, "bad_span", "/baseline/without/1"),
    ("updates", {"probe_queries": ["a", ""]}, "empty_query", "/probe_queries/1"),
    ("updates", {"probe_queries": [[1, 999]]}, "token_out_of_range", "/probe_queries/0/1"),
    ("trajectories", {"context": ""}, "empty_context", "/context"),
    ("attributions", {"query": ""}, "empty_query", "/query"),
    ("trajectories", {"layers": [3]}, "layer_out_of_range", "/layers/0"),
    ("attributions", {"positions": [7]}, "position_out_of_range", "/positions/0"),
    (
        "updates",
        {"context": [1, 2, 3], "baseline": {"without": [[0, 2], [2, 3]]}},
        "bad_span",
        "/baseline/without",
    ),
]
SPANS: list[tuple[str, dict[str, Any], str]] = [
    ("trajectories", {"spans": []}, "/spans"),
    ("trajectories", {"spans": [[0, 2]]}, "/spans/0"),
    ("trajectories", {"spans": [[1, 4]]}, "/spans/0"),
    ("trajectories", {"spans": [[0, 1], [2, 4]]}, "/spans/1"),
    ("trajectories", {"spans": [[0, 2], [1, 4]]}, "/spans/1"),
    ("trajectories", {"spans": [[0, 4], [4, 4]]}, "/spans/1"),
    ("trajectories", {"spans": [[0, 5]]}, "/spans/0"),
    ("attributions", {"spans": []}, "/spans"),
    ("attributions", {"spans": [[2, 3], [0, 1]]}, "/spans/1"),
    ("attributions", {"spans": [[0, 2], [1, 3]]}, "/spans/1"),
    ("attributions", {"spans": [[-1, 2]]}, "/spans/0"),
    ("attributions", {"spans": [[3, 3]]}, "/spans/0"),
    ("attributions", {"spans": [[3, 2**53]]}, "/spans/0"),
]
REFUSED += [
    (resource, {"context": [1, 2, 3, 4]} | changes, "bad_span", where)
    for resource, changes, where in SPANS
]
BOUNDED = {
    "token_out_of_range",
    "layer_out_of_range",
    "position_out_of_range",
    "prompt_too_long",
}
"""Codes whose problems state a limit."""

UNDEFINED: list[tuple[str, dict[str, Any]]] = [
    *[
        (resource, changes)
        for resource in ("trajectories", "attributions")
        for changes in (
            {"baseline": "alone"},
            {"baseline": {"without": [[0, 1]]}},
            {"baseline": {"context": CANARY}},
            {"stream": "sequential"},
        )
    ],
    ("updates", {"include": ["split"]}),
    ("updates", {"include": ["split"], "baseline": "alone", "stream": "sequential"}),
    ("checks", {"scope": "model", "stream": "free"}),
]
"""Combinations that are not defined."""


def filled(resource: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A valid body with invalid changes."""
    if resource == "tokenize":
        return changes
    return ({"prompts": [CANARY]} if resource == "activations" else PAIR) | changes


@pytest.mark.parametrize(("resource", "changes", "code", "where"), REFUSED)
def test_request_that_does_not_fit_the_model_is_refused(
    tiny_client: httpx.Client, resource: str, changes: dict[str, Any], code: str, where: str
) -> None:
    """A request that does not fit the model gets its code, a pointer that resolves, and the
    limit."""
    sent = filled(resource, changes)
    said = problem(tiny_client.post(PATHS[resource], json=sent), code, sent)
    if where:
        assert [mistake.pointer for mistake in said.errors or ()] == [where]
    if code in BOUNDED:
        assert said.limit is not UNSET
    if code in ("prompt_too_long", "token_out_of_range", "layer_out_of_range"):
        assert said.actual is not UNSET
        assert said.actual > (said.limit or 0) or said.actual < 0


@pytest.mark.parametrize(("resource", "changes"), UNDEFINED)
def test_undefined_combinations_return_422(
    tiny_client: httpx.Client, resource: str, changes: dict[str, Any]
) -> None:
    """An undefined combination returns 422 `not_supported` with a pointer to it."""
    sent = filled(resource, changes)
    said = problem(tiny_client.post(PATHS[resource], json=sent), "not_supported", sent)
    assert [mistake.pointer.lstrip("/") in sent for mistake in said.errors or ()] == [True]


@pytest.mark.parametrize("path", ["/v1", "/v1/nope", "/nope", "/problems/x"])
def test_unknown_path_returns_404(tiny_client: httpx.Client, path: str) -> None:
    """A path that does not exist returns 404 `not_found`."""
    method = "GET" if path.startswith("/problems") else "POST"
    problem(tiny_client.request(method, path, json={}), "not_found")


@pytest.mark.parametrize("path", [*PATHS.values()])
def test_trailing_slash_returns_404(tiny_client: httpx.Client, path: str) -> None:
    """A path with a trailing slash returns 404, not a redirect to the Host header's host."""
    problem(tiny_client.post(f"{path}/", json={}), "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *[("GET", path, "POST") for path in PATHS.values()],
        ("DELETE", PATHS["updates"], "POST"),
        ("POST", "/v1/model", "GET"),
        ("PUT", "/livez", "GET"),
        ("POST", "/metrics", "GET"),
    ],
)
def test_unsupported_method_returns_405(
    tiny_client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    """An unsupported method returns 405, with the supported ones in `Allow`."""
    response = tiny_client.request(method, path)
    problem(response, "method_not_allowed")
    assert allowed in response.headers["allow"].split(", ")


@pytest.mark.parametrize("code", STATUS)
def test_problem_type_resolves_to_its_explanation(tiny_client: httpx.Client, code: str) -> None:
    """The `type` of a problem is a path under which the service explains it."""
    answer = tiny_client.get(f"/problems/{code}")
    assert answer.status_code == 200
    meaning = answer.json()
    assert (meaning["code"], meaning["status"]) == (code, STATUS[code])
    assert meaning["title"]
    assert meaning["meaning"]
    assert meaning["retryable"] == (STATUS[code] in RETRYABLE)


def test_codes_equal_those_of_the_contract() -> None:
    """The service has exactly the codes and statuses of the contract."""
    assert {code: kind.status for code, kind in PROBLEMS.items()} == STATUS


def test_too_many_probe_queries_return_413(narrow: Heard) -> None:
    """`probe_queries` count as prompts, and are counted before they are tokenised."""
    sent = {"context": [1], "query": [2], "include": [], "probe_queries": ["a", "b", "c"]}
    said = problem(narrow.client.post(PATHS["updates"], json=sent), "too_many_items", sent)
    assert (said.limit, said.actual) == (NARROW["max_prompts"], 3)
    assert [mistake.pointer for mistake in said.errors or ()] == ["/probe_queries"]


@pytest.mark.parametrize("resource", ["activations", "tokenize"])
def test_too_many_prompts_return_413(narrow: Heard, resource: str) -> None:
    """More prompts than `max_prompts` return 413 with both numbers."""
    sent = {"prompts": [CANARY, "a", "b"]}
    said = problem(narrow.client.post(PATHS[resource], json=sent), "too_many_items", sent)
    assert (said.limit, said.actual) == (NARROW["max_prompts"], 3)
    assert [mistake.pointer for mistake in said.errors or ()] == ["/prompts"]


SHORT = {"context": "abc", "query": "wxyz" * 3, "positions": "all"}
NEVER_FITS: list[tuple[str, dict[str, Any], str, int | None]] = [
    (
        "activations",
        {"prompts": [[1] * 30, [2] * 11], "layers": [0]},
        "max_tokens_per_request",
        41,
    ),
    (
        "updates",
        {"context": [1] * 30, "query": [2] * 9, "layers": [0], "include": []},
        "max_tokens_per_request",
        48,
    ),
    (
        "activations",
        {"prompts": [[1] * 20], "positions": "all", "hook_points": ["mlp_pre", "mlp_act"]},
        "max_response_bytes",
        None,
    ),
    ("updates", SHORT, "max_response_bytes", None),
    (
        "checks",
        {"context": [1] * 20, "query": [2] * 17, "positions": "all"},
        "max_response_bytes",
        None,
    ),
    ("tokenize", {"context": "x" * 900, "query": "y" * 900}, "max_response_bytes", None),
]


@pytest.mark.parametrize(("resource", "sent", "limit", "actual"), NEVER_FITS)
def test_work_above_the_limits_is_never_fits(
    narrow: Heard, resource: str, sent: dict[str, Any], limit: str, actual: int | None
) -> None:
    """Work or an answer above the limits is refused before it is computed, with both numbers."""
    said = problem(narrow.client.post(PATHS[resource], json=sent), "never_fits", sent)
    assert said.limit == NARROW[limit]
    assert said.limit is not UNSET
    assert said.actual is not UNSET
    assert said.actual > said.limit
    if actual is not None:
        assert said.actual == actual


def test_float64_halves_the_rows_that_fit(narrow: Heard) -> None:
    """The limit on work counts rows × layers × bytes, so that float64 fits half as many rows."""
    sent = {"context": [*range(8)], "query": [2] * 3, "precision": "float64", "baseline": "alone"}
    said = problem(narrow.client.post(PATHS["checks"], json=sent), "never_fits", sent)
    layers = narrow.client.get("/v1/model").json()["n_layers"]
    assert said.limit == NARROW["max_tokens_per_request"] * layers * 4
    assert said.actual == (11 + 3 + 11) * layers * 8
    assert narrow.client.post(PATHS["checks"], json=sent | {"layers": [0]}).status_code == 200
    assert narrow.client.post(PATHS["checks"], json=sent | {"precision": "float32"}).is_success


def test_anchored_needs_an_anchor_token(narrow: Heard) -> None:
    """`anchored` returns 422 `no_anchor_token` if the tokenizer lacks <|endoftext|>."""
    sent = {"context": "abc", "query": "cd", "baseline": "anchored"}
    said = problem(narrow.client.post(PATHS["updates"], json=sent), "no_anchor_token", sent)
    assert [mistake.pointer for mistake in said.errors or ()] == ["/baseline"]


@pytest.mark.parametrize("resource", ["activations", "updates", "checks"])
def test_nan_activation_returns_non_finite(narrow: Heard, resource: str) -> None:
    """A NaN activation returns 500 `non_finite` with its layer, and the next request is
    answered."""
    bad = {"context": POISON, "query": "b"} if resource != "activations" else {"prompts": [POISON]}
    said = problem(narrow.client.post(PATHS[resource], json=bad), "non_finite", bad)
    assert "layer" in said.detail
    assert any(character.isdigit() for character in said.detail)
    good = {"prompts": ["a"], "layers": [0]}
    assert narrow.client.post(PATHS["activations"], json=good).status_code == 200
