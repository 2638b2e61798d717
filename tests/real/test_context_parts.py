"""Trajectories and attributions of pretrained models, compared with separate runs in float64."""

from __future__ import annotations

from typing import Any

import pytest

from tests.analysis.subjects import CAPTURED, agree
from tests.oracle import Question, attribution, token_spans, trajectory
from tests.real.subject import BASELINES, Subject

pytestmark = pytest.mark.slow
PAIR = "capitals"
SPANS = 4
"""Tokens of a span: a country, a colon, its capital and a full stop."""


def spans_of(question: Question) -> list[tuple[int, int]]:
    """Spans that cover the context without the anchor."""
    tokens = range(len(question.context) - len(question.always_kept))
    first = question.context[: len(question.context) - len(tokens)]
    begin, end = len(first), len(question.context)
    return [(at, min(at + SPANS, end)) for at in range(begin, end, SPANS)]


def asked(subject: Subject, resource: str, baseline: str, **body: Any) -> Any:
    """The figures of a few layers at the query's last token."""
    body |= {"baseline": BASELINES[baseline], "layers": subject.layers[::2]}
    return subject.ask(resource, PAIR, **body)["layers"]


def widest(subject: Subject, question: Question, layer: int) -> float:
    """The largest relative error of mlp_in in the two runs of a question."""
    runs = (question.full_prompt, question.full), (question.baseline_prompt, question.base)
    rows = (float(subject.bounds(*run)[layer, "mlp_in"][-1]) for run in runs)
    return max(CAPTURED, *rows)


@pytest.mark.parametrize(
    ("kind", "baseline"), [("spans", "anchored"), ("spans", "matched"), ("tokens", "anchored")]
)
def test_trajectories_equal_the_oracles(subject: Subject, kind: str, baseline: str) -> None:
    """Every step agrees with a run of its own in float64, by spans and by tokens."""
    question = subject.question(PAIR, baseline)
    spans = spans_of(question) if kind == "spans" else list(token_spans(question))
    if kind == "tokens":
        spans = spans[len(question.always_kept) :]
    body = {"spans": [list(span) for span in spans]} if kind == "spans" else {}
    layers = subject.layers[::2] if kind == "spans" else subject.layers[2:3]
    found = {one["layer"]: one for one in asked(subject, "trajectories", baseline, **body)}
    for layer in layers:
        one, theirs = found[layer], trajectory(question, layer, -1, spans)
        bound = widest(subject, question, layer)
        agree(one["eta"], theirs.eta, 2 * bound, (layer, "eta"))
        assert one["telescoping_error"] <= 1e-5
        assert [tuple(step["span"]) for step in one["steps"]] == spans
        for step, truth in zip(one["steps"], theirs.steps, strict=True):
            spread = bound * truth.step_cancellation
            agree(step["norm"], truth.norm, bound * truth.cancellation, (layer, "norm"))
            agree(step["step_norm"], truth.step_norm, spread, (layer, "step norm"))
            agree(step["gradient_norm"], truth.gradient_norm, spread, (layer, "gradient norm"))
            near = spread * truth.loss_scale
            assert step["loss_before"] == pytest.approx(truth.loss_before, abs=near)
            assert step["loss_after"] == pytest.approx(truth.loss_after, abs=near)
            near = bound * (truth.cancellation + theirs.steps[-1].cancellation)
            assert step["cosine_to_final"] == pytest.approx(truth.cosine_to_final, abs=near)


@pytest.mark.parametrize("baseline", BASELINES)
def test_attributions_equal_the_oracles(subject: Subject, baseline: str) -> None:
    """Every span's figures agree with runs of its own in float64."""
    question = subject.question(PAIR, baseline)
    spans = spans_of(question)
    body = {"spans": [list(span) for span in spans]}
    for one in asked(subject, "attributions", baseline, **body):
        layer = one["layer"]
        theirs = attribution(question, layer, -1, spans=spans)
        bound = widest(subject, question, layer)
        whole = subject.difference_bound(question, layer, "mlp_in")
        agree(one["norm"], theirs.norm, whole, (layer, "norm"))
        assert one["order_effect"] == pytest.approx(theirs.order_effect, abs=2 * whole)
        for span, truth in zip(one["spans"], theirs.spans, strict=True):
            spread = bound * truth.cancellation
            left = bound * truth.leave_one_out_cancellation
            agree(span["only_this_span"], truth.only_this_span, spread, (layer, "only this"))
            agree(span["leave_one_out"], truth.leave_one_out, left, (layer, "leave one out"))
            near = spread + whole
            assert span["cosine_to_total"] == pytest.approx(truth.cosine_to_total, abs=near)
            near *= 2 * max(1.0, truth.only_this_span / theirs.norm)
            assert span["share"] == pytest.approx(truth.share, abs=near)
