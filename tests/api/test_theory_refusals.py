"""The theory over HTTP: each undefined combination, invalid span and excessive size returns 422."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from schemas.common import UNSET
from tests.api.conftest import NARROW, Heard
from tests.api.wire import SAFETENSORS, problem, resolve

PATHS = {
    "updates": "/v1/weight-updates",
    "checks": "/v1/equivalence-checks",
    "ways": "/v1/trajectories",
    "shares": "/v1/attributions",
}
PAIR: dict[str, Any] = {"context": [40, 7, 200, 91, 3], "query": [18, 150]}
SEQUENTIAL = {"stream": "sequential"}
MODEL = {"scope": "model"}
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("updates", {"form": "gain"}, "validation", "/form"),
    ("checks", {"form": "weights", "scope": "projection"}, "not_supported", "/form"),
    (
        "updates",
        {"stream": "sequential", "probe_queries": ["a"]},
        "not_supported",
        "/probe_queries",
    ),
    ("updates", {"include": ["split"]}, "not_supported", "/include"),
    ("updates", {"include": ["split"], "baseline": "anchored"}, "not_supported", "/include"),
    (
        "updates",
        {"include": ["split"], "baseline": {"without": [[0, 1]]}},
        "not_supported",
        "/include",
    ),
    (
        "updates",
        {"include": ["split"], "baseline": "alone"} | SEQUENTIAL,
        "not_supported",
        "/include",
    ),
    ("updates", {"probe_queries": ["a", ""]}, "empty_query", "/probe_queries/1"),
    ("updates", {"probe_queries": [[5], [5, 999]]}, "token_out_of_range", "/probe_queries/1/1"),
    ("updates", {"probe_queries": [7]}, "validation", "/probe_queries/0"),
    ("updates", {"probe_queries": "a"}, "validation", "/probe_queries"),
    ("checks", MODEL | {"stream": "free"}, "not_supported", "/stream"),
    ("checks", {"scope": "models"}, "validation", "/scope"),
    ("checks", {"spans": [[0, 1]]}, "validation", "/spans"),
]
SPANS: list[tuple[dict[str, Any], str, str, tuple[int, int] | None]] = [
    ({"spans": []}, "bad_span", "/spans", None),
    ({"spans": [[0, 0], [0, 5]]}, "bad_span", "/spans/0", (5, 0)),
    ({"spans": [[0, 2], [2, 2], [2, 5]]}, "bad_span", "/spans/1", (5, 2)),
    ({"spans": [[0, 3], [2, 5]]}, "bad_span", "/spans/1", (3, 2)),
    ({"spans": [[3, 5], [0, 3]]}, "bad_span", "/spans/1", (5, 0)),
    ({"spans": [[0, 6]]}, "bad_span", "/spans/0", (5, 6)),
    ({"spans": [[-1, 5]]}, "bad_span", "/spans/0", (5, -1)),
    ({"spans": [[4, 2]]}, "bad_span", "/spans/0", (5, 4)),
    ({"spans": [[0, 6]], "baseline": "anchored"}, "bad_span", "/spans/0", (1, 0)),
    ({"spans": [[1, 7]], "baseline": "anchored"}, "bad_span", "/spans/0", (6, 7)),
    ({"spans": [[0]]}, "validation", "/spans/0", None),
    ({"spans": [[0, 1, 2]]}, "validation", "/spans/0", None),
    ({"spans": [[0, 1.0]]}, "validation", "/spans/0/1", None),
    ({"spans": "sentences"}, "validation", "/spans", None),
    ({"baseline": "alone"}, "not_supported", "/baseline", None),
    ({"baseline": {"without": [[0, 1]]}}, "not_supported", "/baseline", None),
    ({"baseline": {"context": [4]}}, "not_supported", "/baseline", None),
    (SEQUENTIAL, "not_supported", "/stream", None),
]
GAPS: list[tuple[dict[str, Any], str, tuple[int, int]]] = [
    ({"spans": [[1, 5]]}, "/spans/0", (0, 1)),
    ({"spans": [[0, 2], [3, 5]]}, "/spans/1", (2, 3)),
    ({"spans": [[0, 2], [2, 4]]}, "/spans/1", (5, 4)),
    ({"spans": [[2, 6]], "baseline": "anchored"}, "/spans/0", (1, 2)),
]


def refusal(client: httpx.Client, resource: str, changes: Any, code: str, where: str) -> Any:
    """The problem of a request with one mistake, whose pointer must be `where`."""
    sent = PAIR | changes
    said = problem(client.post(PATHS[resource], json=sent), code, sent)
    assert said.errors
    assert [mistake.pointer for mistake in said.errors] == [where]
    resolve(where, sent)
    return said


@pytest.mark.parametrize("resource", PATHS)
def test_unknown_stream_returns_422(tiny_client: httpx.Client, resource: str) -> None:
    """A stream other than `free` and `sequential` returns 422 at `/stream`."""
    refusal(tiny_client, resource, {"stream": "causal"}, "validation", "/stream")


@pytest.mark.parametrize(("resource", "changes", "code", "where"), REFUSED)
def test_undefined_combinations_return_422(
    tiny_client: httpx.Client, resource: str, changes: dict[str, Any], code: str, where: str
) -> None:
    """Each undefined combination returns 422 with a pointer to the field at fault."""
    refusal(tiny_client, resource, changes, code, where)


@pytest.mark.parametrize("resource", ["ways", "shares"])
@pytest.mark.parametrize(("changes", "code", "where", "bound"), SPANS)
def test_invalid_spans_and_baselines_return_422(
    tiny_client: httpx.Client,
    resource: str,
    changes: dict[str, Any],
    code: str,
    where: str,
    bound: tuple[int, int] | None,
) -> None:
    """Invalid spans, baselines and streams return 422, with the limit and the value if any."""
    said = refusal(tiny_client, resource, changes, code, where)
    assert bound == (None if said.limit is UNSET else (said.limit, said.actual))


@pytest.mark.parametrize(("changes", "where", "bound"), GAPS)
def test_only_trajectories_refuse_gaps(
    tiny_client: httpx.Client, changes: dict[str, Any], where: str, bound: tuple[int, int]
) -> None:
    """Trajectories refuse gaps between spans, and attributions accept them."""
    said = refusal(tiny_client, "ways", changes, "bad_span", where)
    assert (said.limit, said.actual) == bound
    found = tiny_client.post(PATHS["shares"], json=PAIR | {"layers": [0]} | changes).json()
    assert [one["span"] for one in found["layers"][0]["spans"]] == changes["spans"]


@pytest.mark.parametrize(
    ("resource", "changes", "rows"),
    [
        ("ways", {"context": [5] * 12, "query": [6, 7]}, 12 + 2 * 13),
        ("ways", {"context": [5] * 13, "query": [6, 7]}, 13 + 2 * 14),
        ("ways", {"context": [5] * 13, "query": [6, 7], "spans": [[0, 13]]}, 17),
        ("updates", {"positions": "all", "stream": "sequential", "query": [6] * 5}, 35),
        ("updates", {"positions": "all", "stream": "sequential", "query": [6] * 6}, 47),
        ("updates", {"query": [6], "probe_queries": [[7] * 12, [8] * 12]}, 55),
        ("updates", {"query": [6], "probe_queries": [[7] * 12, [7] * 12]}, 31),
        ("checks", MODEL | {"positions": "all", "query": [6] * 4}, 45),
    ],
)
def test_work_above_the_row_limit_is_never_fits(
    narrow: Heard, resource: str, changes: dict[str, Any], rows: int
) -> None:
    """Work above the row limit returns `never_fits` with both numbers, and work within it is
    done."""
    sent = PAIR | {"layers": [0]} | changes
    response = narrow.client.post(PATHS[resource], json=sent)
    limit = NARROW["max_tokens_per_request"]
    assert isinstance(limit, int)
    if rows <= limit:
        assert response.status_code == 200, response.text
        return
    said = problem(response, "never_fits", sent)
    assert (said.limit, said.actual) == (limit, rows)


@pytest.mark.parametrize("resource", ["checks", "ways", "shares"])
def test_answers_without_tensors_are_json_only(tiny_client: httpx.Client, resource: str) -> None:
    """Resources without tensors return 406 for safetensors."""
    path = PATHS[resource]
    problem(tiny_client.post(path, json=PAIR, headers={"Accept": SAFETENSORS}), "not_acceptable")
