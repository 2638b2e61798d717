"""Trajectories, attributions, reuse, splits and joint patches of a gated model, a parallel one, and
one with norms after the MLP, compared with the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from schemas.common import UNSET, Request
from schemas.equivalence_checks import EquivalenceChecksRequest
from schemas.weight_updates import Split, WeightUpdatesRequest
from service.analysis.attributions import attributions
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.joints import joint_updates
from service.analysis.trajectories import trajectories
from service.analysis.weight_updates import weight_updates
from service.engine import drive
from service.errors import NotSupported
from tests import oracle
from tests.analysis import test_attributions, test_reuse, test_trajectories
from tests.analysis.subjects import CONTEXT, QUERY, Subject, agree, plan_of

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


def test_joint_updates_equal_the_oracles(variant_of: Callable[[str], Subject]) -> None:
    """Gate, up and down have the parts of the oracle's least-norm solutions, and the joint patch
    holds at all positions, in a gated model and in a parallel one."""
    for name in NAMES[:2]:
        subject = variant_of(name)
        model, pair, question = (
            subject.model,
            subject.pair("anchored"),
            subject.question("anchored"),
        )
        layers = moved(subject)
        for one in drive(model, joint_updates(model, pair, layers, ["factors"])):
            theirs = oracle.joint(question, one.layer, range(len(QUERY)))
            *first, second = one.weights
            names = [weight.name for weight in model.first_weights(one.layer)]
            assert [weight.name for weight in first] == names
            assert second.name == model.second_weight(one.layer)
            agree(second.norm, theirs.w_out.norm, 1e-4)
            parts = np.split(theirs.w_in.dense, len(first), axis=1)
            for weight, part in zip(first, parts, strict=True):
                agree(weight.norm, oracle.norm(part), 1e-4)
                assert weight.input is not UNSET
                assert weight.output is not UNSET
                agree(weight.input.double().T @ weight.output.double(), part, 1e-4)
        procedure = Procedure("block", torch.float64, joint=True)
        for check in drive(model, block_checks(model, pair, layers, procedure)):
            truth = oracle.joint_check(question, check.layer, range(len(QUERY)))[check.position]
            assert check.holds
            agree(check.unpatched_relative_error, truth.unpatched_relative_error, 1e-9)
            for control, error in (check.controls or {}).items():
                assert error is not None
                assert error > 100 * check.tolerance, control


@pytest.mark.parametrize("kind", [WeightUpdatesRequest, EquivalenceChecksRequest])
def test_joint_is_refused_where_a_norm_follows_the_mlp(
    kind: type[Request], variant_of: Callable[[str], Subject]
) -> None:
    """`joint` is not supported after post-norms, and is where the norm is missing."""
    fields: dict[str, Any] = {"context": CONTEXT, "query": QUERY, "positions": "all", "joint": True}
    asked = kind(**fields)
    with pytest.raises(NotSupported, match="a norm follows its MLP") as refused:
        plan_of(variant_of("gemma3").model, asked)
    assert refused.value.at == ("joint",)
    assert plan_of(variant_of("qwen3").model, asked).runs
