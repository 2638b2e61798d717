"""Equivalence checks of pretrained models, of every layer and scope."""

from __future__ import annotations

from typing import Any

import pytest

from tests.analysis.subjects import agree
from tests.oracle import block_check, likeliest, logits_check, projection_check
from tests.real.subject import BASELINES, PAIRS, Subject

pytestmark = pytest.mark.slow
EXACT = 1e-12
PART = 0.2
"""Largest relative error in float32, in tolerances; `EXACT` is that in float64."""
CONTROL = 40.0
"""Least relative error of a control, in tolerances, in float32."""
PROJECTION = 1e-5
"""What stands for the tolerance of a projection, the gate alone: Gemma's stream is 3,000 times as
long as the projection, and the tolerance grows with it although a norm lies between them."""
CHECKS = {
    "projection": {"scope": "projection"},
    "block": {"scope": "block"},
    "block, weights": {"scope": "block", "form": "weights"},
    "block, sequential": {"scope": "block", "stream": "sequential"},
    "model": {"scope": "model"},
    "model, weights": {"scope": "model", "form": "weights"},
}


def asked(subject: Subject, pair: str, **body: Any) -> Any:
    """Checks of every layer."""
    answer = subject.ask("equivalence-checks", pair, **body)
    assert [one["layer"] for one in answer["checks"]] == [*range(subject.oracle.n_layers)]
    return answer


@pytest.mark.parametrize("kind", CHECKS)
@pytest.mark.parametrize("pair", PAIRS)
def test_float32_checks_hold_and_controls_do_not(subject: Subject, pair: str, kind: str) -> None:
    """Every check holds in float32 with a fifth of its tolerance, and each control is at least 40
    tolerances off."""
    answer = asked(subject, pair, **CHECKS[kind])
    for one in [*answer["checks"], *answer.get("logits", ())]:
        what = (one.get("layer", "logits"), kind)
        assert one["verdict"] == "holds", what
        allowed = PROJECTION if kind == "projection" else one["tolerance"]
        assert one["relative_error"] <= PART * allowed, what
        for name, error in one["controls"].items():
            if error is None:
                assert one["control_reasons"][name]
            else:
                assert error >= CONTROL * allowed, (*what, name)


@pytest.mark.parametrize("kind", CHECKS)
@pytest.mark.parametrize("baseline", BASELINES)
def test_float64_checks_are_exact(subject: Subject, baseline: str, kind: str) -> None:
    """Every check agrees to 1e-12 in float64."""
    body = CHECKS[kind] | {"baseline": BASELINES[baseline], "precision": "float64"}
    answer = asked(subject, "antonyms", controls=False, **body)
    assert answer["verdict"] == "holds"
    for one in [*answer["checks"], *answer.get("logits", ())]:
        assert one["relative_error"] <= EXACT


def test_unpatched_errors_are_the_oracles(subject: Subject) -> None:
    """What the float64 checks compare is what the oracle compares: the errors without a patch, and
    the sizes, agree to 1e-9."""
    question = subject.question("one token")
    for scope, check in (("block", block_check), ("projection", projection_check)):
        body = {"scope": scope, "precision": "float64", "layers": subject.layers[::2]}
        answer = subject.ask("equivalence-checks", "one token", controls=False, **body)
        for one in answer["checks"]:
            theirs = check(question, one["layer"])
            what = (one["layer"], scope)
            agree(one["magnitude"], theirs.magnitude, 1e-9, what)
            agree(one["unpatched_relative_error"], theirs.unpatched_relative_error, 1e-9, what)


def test_logits_are_the_oracles(subject: Subject) -> None:
    """The likeliest tokens of the patched model are those of the oracle's full prompt, and the
    error without a patch is the oracle's."""
    body = {"scope": "model", "form": "weights", "precision": "float64", "controls": False}
    (logits,) = asked(subject, "one token", **body)["logits"]
    theirs = logits_check(subject.question("one token"), -1, "weights")
    assert theirs.relative_error <= EXACT
    expected = likeliest(theirs.expected)
    for run in ("with_context", "patched"):
        tokens = logits["top_tokens"][run]
        assert [token["id"] for token in tokens] == [token for token, _ in expected]
        agree([t["probability"] for t in tokens], [share for _, share in expected], 1e-9, run)
    agree(logits["unpatched_relative_error"], theirs.unpatched_relative_error, 1e-9, "unpatched")
