"""The theory over HTTP: answers match the contract's schemas and the oracle's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from schemas.attributions import AttributionsAnswer
from schemas.common import adapter
from schemas.equivalence_checks import EquivalenceChecksAnswer
from schemas.trajectories import TrajectoriesAnswer
from schemas.weight_updates import Update, WeightUpdatesAnswer
from tests import oracle
from tests.api.wire import array
from tests.oracle import GPT2

PATHS: dict[str, tuple[str, Any]] = {
    "updates": ("/v1/weight-updates", WeightUpdatesAnswer),
    "checks": ("/v1/equivalence-checks", EquivalenceChecksAnswer),
    "ways": ("/v1/trajectories", TrajectoriesAnswer),
    "shares": ("/v1/attributions", AttributionsAnswer),
}
CONTEXT, QUERY = [40, 7, 200, 91, 3], [18, 150]
PAIR = {"context": CONTEXT, "query": QUERY}
ALL: dict[str, Any] = {"positions": "all"}
CLOSE = 1e-3
"""Far above the agreement rule and far below any wrong formula; tests/analysis holds the rule."""


def ask(client: httpx.Client, resource: str, **changes: Any) -> Any:
    """The answer as JSON, after validation with its schema."""
    path, model = PATHS[resource]
    response = client.post(path, json=PAIR | changes)
    assert response.status_code == 200, response.text
    adapter(model).validate_json(response.content)
    return response.json()


def question(model: GPT2, baseline: oracle.Baseline = "matched") -> oracle.Question:
    """The same question in the oracle."""
    return oracle.ask(model, CONTEXT, QUERY, baseline, anchor=0)


def near(value: Any) -> Any:
    """Approximately equal to `value`, within `CLOSE`."""
    return pytest.approx(value, rel=CLOSE)


SEQUENTIAL = {"stream": "sequential"}
MODEL = {"scope": "model"}
Held = Callable[[Any, GPT2], None]


def sequential_updates(said: Any, model: GPT2) -> None:
    """The norms equal those on the patched stream."""
    assert said["stream"] == "sequential"
    for one in said["updates"]:
        theirs = oracle.sequential(question(model), one["position"]).updates[one["layer"]]
        assert one["norm"] == near(theirs.norm)


def split_updates(said: Any, model: GPT2) -> None:
    """Content and position add up to the update's factors."""
    for one in said["updates"]:
        adapter(Update).validate_python(one)
        parts = [array(one["split"][part]["outputs"][0]) for part in ("content", "position")]
        np.testing.assert_allclose(sum(parts), array(one["weights"][0]["output"]), atol=1e-5)
        theirs = oracle.split(question(model, "alone"), one["layer"], one["position"])
        assert one["split"]["content"]["norm"] == near(theirs["content"].norm)


def reused_updates(said: Any, model: GPT2) -> None:
    """One entry per probe, in the order of the probes."""
    for one in said["updates"]:
        change = oracle.update(question(model), one["layer"], one["position"])
        for i, probe in enumerate(([9], [30, 31])):
            theirs = oracle.reuse(change, oracle.ask(model, CONTEXT, probe), one["layer"])
            assert one["reuse"][i]["query"] == i
            assert one["reuse"][i]["relative_error"] == near(theirs.relative_error)


def model_checks(said: Any, model: GPT2) -> None:
    """The check holds in float64 on the sequential stream, and reports the logits."""
    assert (said["holds"], said["verdict"]) == (True, "holds")
    assert (said["stream"], said["precision"]) == ("sequential", "float64")
    assert len(said["checks"]) == 6
    for one in said["logits"]:
        theirs = oracle.logits_check(question(model), one["position"])
        assert one["relative_error"] <= 1e-12
        assert one["unpatched_relative_error"] == near(theirs.unpatched_relative_error)
        assert [token["id"] for token in one["top_tokens"]["patched"]] == [
            token for token, _ in oracle.likeliest(theirs.expected)
        ]


def ways(said: Any, model: GPT2) -> None:
    """The anchor is token 0 of the echoed context and belongs to no span."""
    assert said["tokens"]["context"][0]["special"]
    for one in said["layers"]:
        assert [step["span"] for step in one["steps"]] == [[i, i + 1] for i in range(1, 6)]
        asked, spans = question(model, "anchored"), [(i, i + 1) for i in range(1, 6)]
        theirs = oracle.trajectory(asked, one["layer"], one["position"], spans)
        assert one["eta"] == near(theirs.eta)
        assert [step["norm"] for step in one["steps"]] == near([s.norm for s in theirs.steps])


def shares(said: Any, model: GPT2) -> None:
    """The requested spans, with a gap before and between them."""
    for one in said["layers"]:
        spans = [(2, 3), (4, 6)]
        asked = question(model, "anchored")
        theirs = oracle.attribution(asked, one["layer"], one["position"], spans=spans)
        assert one["order_effect"] == near(theirs.order_effect)
        for found, truth in zip(one["spans"], theirs.spans, strict=True):
            assert found["leave_one_out"] == near(truth.leave_one_out)
            assert found["share"] == pytest.approx(truth.share, abs=CLOSE)


ANSWERED: list[tuple[str, dict[str, Any], Held]] = [
    ("updates", ALL | SEQUENTIAL, sequential_updates),
    ("updates", ALL | {"include": ["factors", "split"], "baseline": "alone"}, split_updates),
    ("updates", ALL | {"probe_queries": [[9], [30, 31]]}, reused_updates),
    ("checks", ALL | MODEL | {"precision": "float64"}, model_checks),
    ("checks", ALL | MODEL | {"precision": "float64"} | SEQUENTIAL, model_checks),
    ("ways", ALL | {"baseline": "anchored"}, ways),
    ("shares", ALL | {"baseline": "anchored", "spans": [[2, 3], [4, 6]]}, shares),
]


@pytest.mark.parametrize(("resource", "changes", "held"), ANSWERED)
def test_answers_equal_the_oracles(
    tiny_client: httpx.Client,
    tiny_oracle: GPT2,
    resource: str,
    changes: dict[str, Any],
    held: Held,
) -> None:
    """Each answer matches its schema and the oracle, and states its baseline."""
    said = ask(tiny_client, resource, **changes)
    assert said["baseline"] == changes.get("baseline", "matched")
    held(said, tiny_oracle)


def test_default_spans_are_sentences(tiny_client: httpx.Client) -> None:
    """A text context has its sentences as default spans, in the answer's own tokens."""
    text = "In D.C. the cab is. A bad"
    said = ask(tiny_client, "shares", context=text, query=" the", layers=[0])
    texts = [token["text"] for token in said["tokens"]["context"]]
    found = ["".join(texts[a:b]) for a, b in (one["span"] for one in said["layers"][0]["spans"])]
    assert found == ["In D.C.", " the cab is.", " A bad"]
