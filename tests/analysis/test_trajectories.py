"""Trajectories by tokens and by spans, compared with one separate oracle run per prefix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from service.analysis.pairs import Pair, Span, resolve_pair
from service.analysis.spans import given_spans, token_spans
from service.analysis.trajectories import LayerTrajectory, trajectories, trajectory_rows
from service.analysis.weight_updates import weight_updates
from service.engine import Run, drive
from service.engine.walk import forward
from tests import oracle
from tests.analysis.subjects import CAPTURED, CONTEXT, QUERY, Subject, agree

only_tiny = pytest.mark.parametrize("subject", ["tiny"], indirect=True)
BASELINES = ("matched", "anchored")
TELESCOPES = 1e-5


def groups(pair: Pair) -> dict[str, tuple[Span, ...]]:
    """Lists of spans that cover the context without its anchor."""
    first, count = int(pair.anchored), len(pair.context)
    return {
        "tokens": token_spans(pair),
        "spans": ((first, 3), (3, 4), (4, count)),
        "whole": ((first, count),),
    }


def asked(
    subject: Subject, pair: Pair, spans: Sequence[Span], layers: Sequence[int] | None = None
) -> tuple[LayerTrajectory, ...]:
    """Trajectories of the given layers at all requested positions."""
    chosen = subject.layers if layers is None else layers
    return drive(subject.model, trajectories(subject.model, pair, chosen, spans))


def check_way(found: LayerTrajectory, theirs: oracle.Trajectory) -> None:
    """Assert that one trajectory agrees with the dense one."""
    agree(found.eta, theirs.eta, CAPTURED)
    assert found.telescoping_error is not None
    assert found.telescoping_error <= TELESCOPES
    whole = theirs.steps[-1].cancellation
    assert [step.span for step in found.steps] == [step.span for step in theirs.steps]
    for step, truth in zip(found.steps, theirs.steps, strict=True):
        what = (found.layer, found.position, step.span)
        agree(step.norm, truth.norm, CAPTURED * truth.cancellation, what)
        agree(step.step_norm, truth.step_norm, CAPTURED * truth.step_cancellation, what)
        agree(step.gradient_norm, truth.gradient_norm, CAPTURED * truth.step_cancellation, what)
        bound = CAPTURED * (truth.cancellation + whole)
        assert step.cosine_to_final == pytest.approx(truth.cosine_to_final, abs=bound), what
        bound = CAPTURED * truth.step_cancellation * truth.loss_scale
        assert step.loss_before == pytest.approx(truth.loss_before, abs=bound), what
        assert step.loss_after == pytest.approx(truth.loss_after, abs=bound), what


@only_tiny
@pytest.mark.parametrize("kind", ["tokens", "spans", "whole"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_trajectories_equal_the_oracles(subject: Subject, baseline: str, kind: str) -> None:
    """Every figure of every step equals the oracle's, with span indices into the echoed context."""
    pair, question = subject.pair(baseline), subject.question(baseline)
    spans = groups(pair)[kind]
    found = asked(subject, pair, spans)
    places = [(layer, j) for layer in subject.layers for j in range(len(QUERY))]
    assert [(way.layer, way.position) for way in found] == places
    for way in found:
        assert [step.span for step in way.steps] == list(spans)
        check_way(way, oracle.trajectory(question, way.layer, way.position, spans))


def test_trajectories_of_both_models_equal_the_oracles(subject: Subject) -> None:
    """Trajectories by spans also equal the oracle's on the bundled model."""
    pair = subject.pair("matched", "last")
    spans = groups(pair)["spans"]
    for way in asked(subject, pair, spans, [subject.layers[1]]):
        check_way(way, oracle.trajectory(subject.question("matched"), way.layer, -1, spans))


def test_token_spans_equal_the_oracles(subject: Subject) -> None:
    """Token spans equal the oracle's without an anchor, and skip an anchor."""
    assert token_spans(subject.pair("matched")) == oracle.token_spans(subject.question("matched"))
    assert token_spans(subject.pair("anchored"))[0] == (1, 2)
    assert len(token_spans(subject.pair("anchored"))) == len(CONTEXT)


@only_tiny
@pytest.mark.parametrize("baseline", BASELINES)
def test_trajectory_ends_in_the_update(subject: Subject, baseline: str) -> None:
    """For any spans the last norm is the update's, and each step is η times its gradient."""
    model, pair = subject.model, subject.pair(baseline)
    updates = drive(model, weight_updates(model, pair, subject.layers, [])).updates
    ways = {kind: asked(subject, pair, spans) for kind, spans in groups(pair).items()}
    for i, one in enumerate(updates):
        for found in ways.values():
            way = found[i]
            agree(way.steps[-1].norm, one.norm, 1e-4)
            assert way.eta == pytest.approx(one.mlp_in.norm_baseline**-2, rel=1e-5)
            for step in way.steps:
                assert step.step_norm == pytest.approx(way.eta * step.gradient_norm, rel=1e-9)
                drop = step.loss_before - step.loss_after
                scale = abs(step.loss_before) + abs(step.loss_after)
                expected = way.eta * step.gradient_norm**2
                assert drop == pytest.approx(expected, rel=1e-4, abs=1e-5 * scale)
        tokens, spans = ways["tokens"][i], ways["spans"][i]
        at = spans.steps[0].span[1] - tokens.steps[0].span[0] - 1
        agree(tokens.steps[at].norm, spans.steps[0].norm, 1e-4)
        assert sum(step.step_norm for step in tokens.steps) > 1.01 * tokens.steps[-1].norm


@only_tiny
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("kind", ["tokens", "spans", "whole"])
def test_each_prefix_is_one_run(subject: Subject, baseline: str, kind: str) -> None:
    """Each prefix is one run, the pack has the announced rows, and separate forwards give the same
    figures."""
    model, pair = subject.model, subject.pair(baseline)
    spans = groups(pair)[kind]
    question = trajectories(model, pair, subject.layers, spans)
    runs: list[Run] = list(next(question))
    assert len(runs) == len(spans) + 1
    context = {row for run in runs for row in run.positions if row < len(pair.context)}
    queries = sum(len(pair.query) for _ in runs)
    assert len(context) + queries == trajectory_rows(pair, spans)
    assert {run.positions[-len(QUERY) :] for run in runs} == {
        pair.with_context.positions[-len(QUERY) :]
    }
    answer: tuple[LayerTrajectory, ...] = ()
    try:
        assert not question.send([forward(model, [run])[0] for run in runs])
        while True:
            assert not question.send(())
    except StopIteration as stop:
        answer = stop.value
    for way, alone in zip(asked(subject, pair, spans), answer, strict=True):
        for step, other in zip(way.steps, alone.steps, strict=True):
            agree(step.norm, other.norm, 1e-4)
            agree(step.step_norm, other.step_norm, 1e-3)


@only_tiny
def test_given_spans_are_the_steps(subject: Subject) -> None:
    """The steps are the given spans, without the anchor."""
    pair = subject.pair("anchored", "last")
    spans = given_spans(pair, [(1, 2), (2, 9), (9, 10)], cover=True)
    (way, *_) = asked(subject, pair, spans)
    assert [step.span for step in way.steps] == [(1, 2), (2, 9), (9, 10)]


@only_tiny
def test_context_of_one_token_has_one_step(subject: Subject) -> None:
    """A context of one token has one step, with cosine 1 and a lower loss after it."""
    pair = resolve_pair(subject.model, [7], [9, 10], "matched", "all")
    for way in asked(subject, pair, token_spans(pair)):
        (step,) = way.steps
        assert step.norm == pytest.approx(step.step_norm, rel=1e-6)
        assert step.cosine_to_final == pytest.approx(1.0, abs=1e-6)
        assert step.loss_after < step.loss_before
        assert not math.isnan(way.eta)
