"""Attributions of spans, compared with the oracle's separate runs and dense updates."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from service.analysis.attributions import (
    LayerAttribution,
    attribution_rows,
    attributions,
)
from service.analysis.pairs import Pair, Span, Without, resolve_pair
from service.analysis.weight_updates import weight_updates
from service.engine import drive
from tests import oracle
from tests.analysis.subjects import CAPTURED, CONTEXT, QUERY, Subject, agree

only_tiny = pytest.mark.parametrize("subject", ["tiny"], indirect=True)
BASELINES = ("matched", "anchored")


def groups(pair: Pair) -> dict[str, tuple[Span, ...]]:
    """Lists of spans: with gaps, covering the context, a single one, and one per token."""
    first, count = int(pair.anchored), len(pair.context)
    return {
        "gaps": ((2, 3), (4, 7)),
        "gaps of three": ((first, 2), (3, 5), (6, count - 1)),
        "covering": ((first, 3), (3, 5), (5, count)),
        "whole": ((first, count),),
        "tokens": tuple((i, i + 1) for i in range(first, count)),
    }


def asked(subject: Subject, pair: Pair, spans: Sequence[Span]) -> tuple[LayerAttribution, ...]:
    """Attributions of the subject's layers at all requested positions."""
    return drive(subject.model, attributions(subject.model, pair, subject.layers, spans))


def check_attribution(
    question: oracle.Question, found: LayerAttribution, spans: Sequence[Span]
) -> None:
    """Assert that one layer and position agrees with the oracle."""
    theirs = oracle.attribution(question, found.layer, found.position, spans=spans)
    whole = oracle.update(question, found.layer, found.position).cancellation
    agree(found.norm, theirs.norm, CAPTURED * whole)
    assert found.order_effect == pytest.approx(theirs.order_effect, abs=2 * CAPTURED * whole)
    assert [one.span for one in found.spans] == [one.span for one in theirs.spans] == list(spans)
    for one, truth in zip(found.spans, theirs.spans, strict=True):
        what = (found.layer, found.position, one.span)
        agree(one.only_this_span, truth.only_this_span, CAPTURED * truth.cancellation, what)
        bound = CAPTURED * truth.leave_one_out_cancellation
        agree(one.leave_one_out, truth.leave_one_out, bound, what)
        bound = CAPTURED * (truth.cancellation + whole)
        assert one.cosine_to_total == pytest.approx(truth.cosine_to_total, abs=bound), what
        bound *= 2 * max(1.0, truth.only_this_span / theirs.norm)
        assert one.share == pytest.approx(truth.share, abs=bound), what


@only_tiny
@pytest.mark.parametrize("kind", ["gaps", "gaps of three", "covering", "whole", "tokens"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_attributions_equal_the_oracles(subject: Subject, baseline: str, kind: str) -> None:
    """Every figure of every span equals the oracle's at each layer and position, with span indices
    into the echoed context."""
    pair = subject.pair(baseline)
    spans = groups(pair)[kind]
    found = asked(subject, pair, spans)
    places = [(layer, j) for layer in subject.layers for j in range(len(QUERY))]
    assert [(one.layer, one.position) for one in found] == places
    for one in found:
        check_attribution(subject.question(baseline), one, spans)


def test_attributions_of_both_models_equal_the_oracles(subject: Subject) -> None:
    """The figures also equal the oracle's on the bundled model."""
    pair = subject.pair("matched", "last")
    spans = groups(pair)["gaps"]
    for one in asked(subject, pair, spans)[:1]:
        check_attribution(subject.question("matched"), one, spans)


@only_tiny
@pytest.mark.parametrize("baseline", BASELINES)
def test_span_of_the_whole_context_is_the_update(subject: Subject, baseline: str) -> None:
    """A span of the whole context has share 1, cosine 1, the update's norm and no order effect."""
    model, pair = subject.model, subject.pair(baseline)
    updates = drive(model, weight_updates(model, pair, subject.layers, [])).updates
    for one, update in zip(asked(subject, pair, groups(pair)["whole"]), updates, strict=True):
        (span,) = one.spans
        assert one.norm == pytest.approx(update.norm, rel=1e-4)
        for figure in (span.only_this_span, span.leave_one_out):
            assert figure == pytest.approx(update.norm, rel=1e-4)
        assert span.cosine_to_total == pytest.approx(1.0, abs=1e-6)
        assert span.share == pytest.approx(1.0, abs=1e-5)
        assert one.order_effect == pytest.approx(0.0, abs=1e-4)


@only_tiny
def test_leave_one_out_is_the_norm_under_without(subject: Subject) -> None:
    """`leave_one_out` is the norm under `{without: [span]}` and differs from `only_this_span`."""
    model, pair = subject.model, subject.pair("matched")
    spans = groups(pair)["covering"]
    found = asked(subject, pair, spans)
    for s, span in enumerate(spans):
        context, query = subject.ids(CONTEXT), subject.ids(QUERY)
        less = resolve_pair(model, context, query, Without((span,)), "all")
        updates = drive(model, weight_updates(model, less, subject.layers, [])).updates
        for one, update in zip(found, updates, strict=True):
            assert one.spans[s].leave_one_out == pytest.approx(update.norm, rel=1e-3)
            assert abs(one.spans[s].only_this_span / update.norm - 1) > 1e-3


@only_tiny
def test_shares_do_not_sum_to_one(subject: Subject) -> None:
    """The shares of covering spans do not sum to 1, and the order of the spans matters."""
    pair = subject.pair("matched", "last")
    for one in asked(subject, pair, groups(pair)["covering"]):
        assert abs(sum(span.share or 0.0 for span in one.spans) - 1) > 1e-3
        assert (one.order_effect or 0.0) > 1e-2


@only_tiny
def test_reversing_equal_spans_has_no_effect(subject: Subject) -> None:
    """If reversing the spans gives the same tokens, the order effect is 0."""
    pair = resolve_pair(subject.model, [5, 9, 7, 5, 9], [11], "matched", "last")
    for one in asked(subject, pair, ((0, 2), (3, 5))):
        assert one.order_effect == 0.0
    for one in asked(subject, pair, ((0, 1), (3, 5))):
        assert (one.order_effect or 0.0) > 1e-3


@only_tiny
@pytest.mark.parametrize("baseline", BASELINES)
def test_announced_rows_are_those_of_the_runs(subject: Subject, baseline: str) -> None:
    """The runs have the announced number of rows, plus at most one anchor per span."""
    pair = subject.pair(baseline)
    for spans in groups(pair).values():
        runs = next(attributions(subject.model, pair, [0], spans))
        rows = sum(len(run.tokens) for run in runs)
        said = attribution_rows(pair, spans)
        assert said <= rows <= said + int(pair.anchored) * len(spans)
