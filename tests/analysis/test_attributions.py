"""Attributions of spans, compared with the oracle's separate runs and dense updates."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from schemas.attributions import LayerAttribution
from schemas.pairs import Span, WithoutSpans
from service.analysis.attributions import attributions
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.weight_updates import weight_updates
from service.engine import drive
from tests import oracle
from tests.analysis.subjects import CAPTURED, CONTEXT, QUERY, Subject, agree, near

only_tiny = pytest.mark.parametrize("subject", ["tiny"], indirect=True)
BASELINES = ("matched", "anchored")


def groups(pair: Pair) -> dict[str, tuple[Span, ...]]:
    """Spans with gaps before, between and after them, spans that cover the context, one span, and
    one per token."""
    first, count = int(pair.head), len(pair.context)
    return {
        "gaps": ((2, 3), (4, 7)),
        "gaps of three": ((first, 2), (3, 5), (6, count - 1)),
        "covering": ((first, 3), (3, 5), (5, count)),
        "whole": ((first, count),),
        "tokens": tuple((i, i + 1) for i in range(first, count)),
    }


def asked(subject: Subject, pair: Pair, spans: Sequence[Span]) -> Sequence[LayerAttribution]:
    """Attributions of three layers at all requested positions."""
    return drive(subject.model, attributions(subject.model, pair, subject.layers, spans)).layers


def check_attribution(
    question: oracle.Question, found: LayerAttribution, spans: Sequence[Span]
) -> None:
    """Compare one layer and position with the oracle."""
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
        near(one.cosine_to_total, truth.cosine_to_total, bound, what)
        bound *= 2 * max(1.0, truth.only_this_span / theirs.norm)
        assert one.share == pytest.approx(truth.share, abs=bound), what


@only_tiny
@pytest.mark.parametrize("kind", ["gaps", "gaps of three", "covering", "whole", "tokens"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_attributions_equal_the_oracles(subject: Subject, baseline: str, kind: str) -> None:
    """Every figure of every span equals the oracle's at each layer and position. With an anchor,
    spans index the context with the anchor."""
    pair = subject.pair(baseline)
    spans = groups(pair)[kind]
    found = asked(subject, pair, spans)
    places = [(layer, j) for layer in subject.layers for j in range(len(QUERY))]
    assert [(one.layer, one.position) for one in found] == places
    for one in found:
        check_attribution(subject.question(baseline), one, spans)


def test_attributions_of_the_bundled_model_equal_the_oracles(subject: Subject) -> None:
    """The figures of one layer equal the oracle's on the bundled model too."""
    pair = subject.pair("matched", "last")
    spans = groups(pair)["gaps"]
    for one in asked(subject, pair, spans)[:1]:
        check_attribution(subject.question("matched"), one, spans)


@only_tiny
@pytest.mark.parametrize("baseline", BASELINES)
def test_one_span_over_the_whole_context_equals_the_update(subject: Subject, baseline: str) -> None:
    """Its share and cosine are 1, both its norms are the update's, and its order has no effect."""
    model, pair = subject.model, subject.pair(baseline)
    updates = drive(model, weight_updates(model, [pair], subject.layers, []))[0].updates
    for one, update in zip(asked(subject, pair, groups(pair)["whole"]), updates, strict=True):
        (span,) = one.spans
        assert one.norm == pytest.approx(update.norm, rel=1e-4)
        for figure in (span.only_this_span, span.leave_one_out):
            assert figure == pytest.approx(update.norm, rel=1e-4)
        assert span.cosine_to_total == pytest.approx(1.0, abs=1e-6)
        assert span.share == pytest.approx(1.0, abs=1e-5)
        assert one.order_effect == pytest.approx(0.0, abs=1e-4)


@only_tiny
def test_leave_one_out_equals_the_update_of_baseline_without_spans(subject: Subject) -> None:
    """`leave_one_out` is the norm that the baseline `{without: [span]}` gives, and differs from
    `only_this_span`."""
    model, pair = subject.model, subject.pair("matched")
    spans = groups(pair)["covering"]
    found = asked(subject, pair, spans)
    for s, span in enumerate(spans):
        context, query = subject.ids(CONTEXT), subject.ids(QUERY)
        less = resolve_pair(model, context, query, WithoutSpans(without=[span]), "all")
        updates = drive(model, weight_updates(model, [less], subject.layers, []))[0].updates
        for one, update in zip(found, updates, strict=True):
            assert one.spans[s].leave_one_out == pytest.approx(update.norm, rel=1e-3)
            assert abs(one.spans[s].only_this_span / update.norm - 1) > 1e-3


@only_tiny
def test_shares_do_not_add_up_and_order_matters(subject: Subject) -> None:
    """Spans interact: shares of spans that cover the context do not add up to 1, and reversing the
    spans changes the update."""
    pair = subject.pair("matched", "last")
    for one in asked(subject, pair, groups(pair)["covering"]):
        assert abs(sum(span.share or 0.0 for span in one.spans) - 1) > 1e-3
        assert (one.order_effect or 0.0) > 1e-2


@only_tiny
def test_order_effect_is_zero_if_the_reversed_spans_have_the_same_tokens(subject: Subject) -> None:
    """Spans of equal tokens have order effect 0. Spans of other tokens do not."""
    pair = resolve_pair(subject.model, [5, 9, 7, 5, 9], [11], "matched", "last")
    for one in asked(subject, pair, ((0, 2), (3, 5))):
        assert one.order_effect == 0.0
    for one in asked(subject, pair, ((0, 1), (3, 5))):
        assert (one.order_effect or 0.0) > 1e-3
