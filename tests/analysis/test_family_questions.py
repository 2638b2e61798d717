"""Trajectories, attributions, reuse and splits of a gated model, a parallel one, and one with
norms after the MLP, compared with the oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from schemas.weight_updates import Split
from service.analysis.attributions import attributions
from service.analysis.trajectories import trajectories
from service.analysis.weight_updates import weight_updates
from service.engine import drive
from tests import oracle
from tests.analysis import test_attributions, test_reuse, test_trajectories
from tests.analysis.subjects import Subject

NAMES = ("qwen3", "neox-parallel", "gemma3")
BASELINES = pytest.mark.parametrize("baseline", ["matched", "anchored"])


@pytest.fixture(scope="module", params=NAMES)
def subject(request: pytest.FixtureRequest, variant_of: Callable[[str], Subject]) -> Subject:
    """A gated model, a parallel one, and one with norms after the MLP."""
    return variant_of(request.param)


def moved(subject: Subject) -> list[int]:
    """The layers whose ΔW is not zero by theorem: a parallel block reads the same in layer 0."""
    return list(range(int(subject.model.parallel), subject.model.n_layers))


@BASELINES
def test_trajectories_equal_the_oracles(subject: Subject, baseline: str) -> None:
    """Every figure of every step equals the oracle's, by tokens and by spans."""
    pair, question = subject.pair(baseline, [2, 0]), subject.question(baseline)
    groups = test_trajectories.groups(pair)
    for spans in (groups["tokens"], groups["spans"]):
        for one in drive(
            subject.model, trajectories(subject.model, pair, moved(subject), spans)
        ).layers:
            theirs = oracle.trajectory(question, one.layer, one.position, spans)
            test_trajectories.check_trajectory(one, theirs)


@BASELINES
def test_attributions_equal_the_oracles(subject: Subject, baseline: str) -> None:
    """Every figure of every span equals the oracle's."""
    pair, question = subject.pair(baseline, [2, 0]), subject.question(baseline)
    spans = test_attributions.groups(pair)["gaps"]
    for one in drive(
        subject.model, attributions(subject.model, pair, moved(subject), spans)
    ).layers:
        test_attributions.check_attribution(question, one, spans)


def test_reuse_equals_the_oracles(subject: Subject) -> None:
    """The error of an update on other queries compares gate and up together, as the oracle's."""
    test_reuse.check_reuse(subject, "anchored")


def test_split_has_no_part_of_the_position(subject: Subject) -> None:
    """Where positions are relative, all of an `alone` update is content."""
    pair, count = subject.pair("alone"), len(subject.model.first_weights(0))
    question = weight_updates(subject.model, [pair], moved(subject), ["split"])
    for update in drive(subject.model, question)[0].updates:
        one = update.split
        assert isinstance(one, Split)
        assert one.position.norm == 0.0 < one.content.norm
        assert len(one.content.outputs) == len(one.position.outputs) == count
        assert not any(bool(output.any()) for output in one.position.outputs)
