"""Trajectories by tokens and by spans, compared with one separate oracle run per prefix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from schemas.pairs import Span
from schemas.trajectories import LayerTrajectory
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.spans import given_spans, token_spans
from service.analysis.trajectories import trajectories
from service.analysis.weight_updates import weight_updates
from service.engine import Run, distinct_rows, drive
from service.engine.walk import forward
from tests import oracle
from tests.analysis.subjects import CAPTURED, CONTEXT, QUERY, Subject, agree, near

only_tiny = pytest.mark.parametrize("subject", ["tiny"], indirect=True)
BASELINES = ("matched", "anchored")
TELESCOPES = 1e-5


def groups(pair: Pair) -> dict[str, tuple[Span, ...]]:
    """Spans that cover the context without its anchor: one per token, three, and one."""
    first, count = int(pair.head), len(pair.context)
    return {
        "tokens": token_spans(pair),
        "spans": ((first, 3), (3, 4), (4, count)),
        "whole": ((first, count),),
    }


def asked(
    subject: Subject, pair: Pair, spans: Sequence[Span], layers: Sequence[int] | None = None
) -> Sequence[LayerTrajectory]:
    """Trajectories of some layers at all requested positions."""
    chosen = subject.layers if layers is None else layers
    return drive(subject.model, trajectories(subject.model, pair, chosen, spans)).layers


def check_trajectory(found: LayerTrajectory, theirs: oracle.Trajectory) -> None:
    """Compare one trajectory with the oracle's dense one."""
    agree(found.eta, theirs.eta, CAPTURED)
    assert found.telescoping_error is not None
    assert found.telescoping_error <= TELESCOPES
    whole = theirs.steps[-1].cancellation
    assert [step.span for step in found.steps] == [step.span for step in theirs.steps]
    for step, truth in zip(found.steps, theirs.steps, strict=True):
        what = (found.layer, found.position, step.span)
        if not truth.norm:
            # Outside a window of attention: what is left is rounding.
            assert step.norm <= CAPTURED * theirs.steps[-1].norm * whole, what
            continue
        agree(step.norm, truth.norm, CAPTURED * truth.cancellation, what)
        agree(step.step_norm, truth.step_norm, CAPTURED * truth.step_cancellation, what)
        agree(step.gradient_norm, truth.gradient_norm, CAPTURED * truth.step_cancellation, what)
        bound = CAPTURED * (truth.cancellation + whole)
        near(step.cosine_to_final, truth.cosine_to_final, bound, what)
        bound = CAPTURED * truth.step_cancellation * truth.loss_scale
        assert step.loss_before == pytest.approx(truth.loss_before, abs=bound), what
        assert step.loss_after == pytest.approx(truth.loss_after, abs=bound), what


@only_tiny
@pytest.mark.parametrize("kind", ["tokens", "spans", "whole"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_trajectories_equal_the_oracles(subject: Subject, baseline: str, kind: str) -> None:
    """Every figure of every step equals the oracle's at each layer and position. With an anchor,
    spans index the context with the anchor, which is token 0."""
    pair, question = subject.pair(baseline), subject.question(baseline)
    spans = groups(pair)[kind]
    found = asked(subject, pair, spans)
    places = [(layer, j) for layer in subject.layers for j in range(len(QUERY))]
    assert [(one.layer, one.position) for one in found] == places
    for one in found:
        assert [step.span for step in one.steps] == list(spans)
        check_trajectory(one, oracle.trajectory(question, one.layer, one.position, spans))


def test_trajectories_of_the_bundled_model_equal_the_oracles(subject: Subject) -> None:
    """The trajectory by spans equals the oracle's on the bundled model too."""
    pair = subject.pair("matched", "last")
    spans = groups(pair)["spans"]
    question = subject.question("matched")
    for one in asked(subject, pair, spans, [subject.layers[1]]):
        check_trajectory(one, oracle.trajectory(question, one.layer, -1, spans))


def test_token_spans_equal_the_oracles(subject: Subject) -> None:
    """The service's token spans equal the oracle's, and begin after an anchor."""
    assert token_spans(subject.pair("matched")) == oracle.token_spans(subject.question("matched"))
    assert token_spans(subject.pair("anchored"))[0] == (1, 2)
    assert len(token_spans(subject.pair("anchored"))) == len(CONTEXT)


@only_tiny
@pytest.mark.parametrize("baseline", BASELINES)
def test_trajectory_ends_in_the_update(subject: Subject, baseline: str) -> None:
    """For any spans the last norm is the update's, each step is η times its gradient, and the norms
    of the token steps add up to more than the update."""
    model, pair = subject.model, subject.pair(baseline)
    updates = drive(model, weight_updates(model, [pair], subject.layers, []))[0].updates
    found = {kind: asked(subject, pair, spans) for kind, spans in groups(pair).items()}
    for i, one in enumerate(updates):
        for layers in found.values():
            along = layers[i]
            agree(along.steps[-1].norm, one.norm, 1e-4)
            assert along.eta == pytest.approx(one.mlp_in.norm_baseline**-2, rel=1e-5)
            for step in along.steps:
                assert step.step_norm == pytest.approx(along.eta * step.gradient_norm, rel=1e-9)
                drop = step.loss_before - step.loss_after
                scale = abs(step.loss_before) + abs(step.loss_after)
                expected = along.eta * step.gradient_norm**2
                assert drop == pytest.approx(expected, rel=1e-4, abs=1e-5 * scale)
        tokens, spans = found["tokens"][i], found["spans"][i]
        at = spans.steps[0].span[1] - tokens.steps[0].span[0] - 1
        agree(tokens.steps[at].norm, spans.steps[0].norm, 1e-4)
        assert sum(step.step_norm for step in tokens.steps) > 1.01 * tokens.steps[-1].norm


@only_tiny
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("kind", ["tokens", "spans", "whole"])
def test_each_prefix_is_one_run(subject: Subject, baseline: str, kind: str) -> None:
    """A trajectory has one run per prefix, which share the context's rows. The runs give the same
    trajectory one at a time."""
    model, pair = subject.model, subject.pair(baseline)
    spans = groups(pair)[kind]
    question = trajectories(model, pair, subject.layers, spans)
    runs: list[Run] = list(next(question))
    assert len(runs) == len(spans) + 1
    context = {row for run in runs for row in run.positions if row < len(pair.context)}
    queries = sum(len(pair.query) for _ in runs)
    assert len(context) + queries == distinct_rows(runs)
    assert {tuple(run.positions[-len(QUERY) :]) for run in runs} == {
        pair.with_context.positions[-len(QUERY) :]
    }
    question = trajectories(model, pair, subject.layers, spans)
    answer = drive(model, question, lambda model, runs: [forward(model, [run])[0] for run in runs])
    for one, alone in zip(asked(subject, pair, spans), answer.layers, strict=True):
        for step, other in zip(one.steps, alone.steps, strict=True):
            agree(step.norm, other.norm, 1e-4)
            agree(step.step_norm, other.step_norm, 1e-3)


@only_tiny
def test_given_spans_are_the_steps(subject: Subject) -> None:
    """Given spans that cover the context become the steps unchanged."""
    pair = subject.pair("anchored", "last")
    spans = given_spans(pair, [(1, 2), (2, 9), (9, 10)], cover=True)
    (found, *_) = asked(subject, pair, spans)
    assert [step.span for step in found.steps] == [(1, 2), (2, 9), (9, 10)]


@only_tiny
def test_context_of_one_token_has_one_step(subject: Subject) -> None:
    """A context of one token gives one step, with cosine 1 and a lower loss."""
    pair = resolve_pair(subject.model, [7], [9, 10], "matched", "all")
    for one in asked(subject, pair, token_spans(pair)):
        (step,) = one.steps
        assert step.norm == pytest.approx(step.step_norm, rel=1e-6)
        assert step.cosine_to_final == pytest.approx(1.0, abs=1e-6)
        assert step.loss_after < step.loss_before
        assert not math.isnan(one.eta)
