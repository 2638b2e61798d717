"""Reuse of an update on other queries, compared with the oracle's dense ΔW."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch import Tensor

from schemas.common import UNSET
from schemas.pairs import Baseline, WithoutSpans
from schemas.weight_updates import Update
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.weight_updates import weight_updates
from service.engine import drive
from tests import oracle
from tests.analysis.subjects import CAPTURED, CONTEXT, QUERY, SPANS, Subject, agree, near

only_tiny = pytest.mark.parametrize("subject", ["tiny"], indirect=True)
PROBES = ([30], [31, 32], QUERY)
"""Seeds of the probe queries. The last is the pair's own query."""
BASELINES: dict[str, Baseline] = {
    "matched": "matched",
    "alone": "alone",
    "anchored": "anchored",
    "without": WithoutSpans(without=list(SPANS)),
}


def probes(subject: Subject, baseline: str, asked: Sequence[Sequence[int]]) -> list[Pair]:
    """The same context and baseline before each probe query."""
    context = subject.ids(CONTEXT)
    kind = BASELINES[baseline]
    return [
        resolve_pair(subject.model, context, subject.ids(query), kind, "last") for query in asked
    ]


def updates(
    subject: Subject,
    baseline: str,
    asked: Sequence[Sequence[int]] = PROBES,
) -> Sequence[Update[Tensor]]:
    """Updates of three layers at all query positions, reused on the probes."""
    model, pair = subject.model, subject.pair(baseline)
    question = weight_updates(
        model, [pair], subject.layers, [], "free", [probes(subject, baseline, asked)]
    )
    return drive(model, question)[0].updates


def check_reuse(subject: Subject, baseline: str) -> None:
    """Compare every entry's reuse with the oracle."""
    question = subject.question(baseline)
    probed = [
        oracle.ask(
            subject.oracle,
            subject.ids(CONTEXT),
            subject.ids(query),
            question.baseline,
            anchor=subject.model.tokenizer.anchor[0],
        )
        for query in PROBES
    ]
    for one in updates(subject, baseline):
        change = oracle.update(question, one.layer, one.position)
        assert one.reuse
        assert [again.query for again in one.reuse] == [0, 1, 2]
        for again, probe in zip(one.reuse, probed, strict=True):
            theirs = oracle.reuse(change, probe, one.layer)
            own = oracle.update(probe, one.layer).cancellation
            bound = CAPTURED * (change.cancellation + own)
            near(again.cosine, theirs.cosine, bound)
            if again.cosine is None:
                continue
            agree(again.unpatched_relative_error, theirs.unpatched_relative_error, bound)
            scale = max(1.0, theirs.relative_error)
            assert again.relative_error == pytest.approx(theirs.relative_error, abs=bound * scale)


@only_tiny
@pytest.mark.parametrize("baseline", BASELINES)
def test_reuse_equals_the_oracles(subject: Subject, baseline: str) -> None:
    """Cosine, patched and unpatched error of each update on each probe equal the oracle's."""
    check_reuse(subject, baseline)


def test_reuse_on_the_bundled_model_equals_the_oracles(subject: Subject) -> None:
    """The same figures equal the oracle's on the bundled model too."""
    check_reuse(subject, "matched")


def test_update_is_exact_for_its_own_query_only(subject: Subject) -> None:
    """On its own query an update's error is rounding and its cosine is 1. On other queries, and for
    other positions of its query, neither is so."""
    for one in updates(subject, "matched"):
        assert one.reuse
        *others, own = one.reuse
        if one.position == len(QUERY) - 1:
            assert own.cosine == pytest.approx(1.0, abs=1e-6)
            assert (own.relative_error or 0.0) <= 1e-5
        else:
            others.append(own)
        for again in others:
            assert again.cosine is not None
            assert abs(again.cosine) < 0.99
            assert again.relative_error is not None
            assert again.relative_error > 1e-2


@only_tiny
def test_reuse_of_a_probe_does_not_depend_on_the_other_probes(subject: Subject) -> None:
    """Each probe has the same figures alone and in another order."""
    every = updates(subject, "anchored")
    reverse = updates(subject, "anchored", asked=PROBES[::-1])
    for i, probe in enumerate(PROBES):
        alone = updates(subject, "anchored", asked=[probe])
        for one, other, lone in zip(every, reverse, alone, strict=True):
            assert one.reuse
            assert other.reuse
            assert lone.reuse
            for again in (other.reuse[len(PROBES) - 1 - i], lone.reuse[0]):
                agree(again.cosine, one.reuse[i].cosine or 0.0, 1e-4)
                agree(
                    again.unpatched_relative_error, one.reuse[i].unpatched_relative_error or 0, 1e-4
                )


@only_tiny
def test_reuse_is_absent_without_probes(subject: Subject) -> None:
    """Without probe queries the field `reuse` is absent."""
    assert all(one.reuse is UNSET for one in updates(subject, "matched", asked=[]))
