"""Joint updates and their checks, compared with the oracle's pseudo-inverse and patched runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.common import UNSET
from schemas.equivalence_checks import Apply, Scope
from schemas.pairs import AnotherContext
from schemas.weight_updates import JointUpdate, JointWeight
from service.analysis.block_checks import CONTROLS, Procedure, block_checks
from service.analysis.joints import joint_updates
from service.analysis.pairs import resolve_pair
from service.engine import drive
from service.theory import DependentRows
from tests import oracle
from tests.analysis.subjects import BASELINES, CAPTURED, CONTEXT, QUERY, Subject, agree

only_tiny = pytest.mark.parametrize("subject", ["tiny"], indirect=True)
FLOAT64 = 1e-12


def asked(
    subject: Subject, baseline: str, positions: Sequence[int]
) -> Sequence[JointUpdate[Tensor]]:
    """The joint updates of all layers, with factors."""
    model, pair = subject.model, subject.pair(baseline, positions)
    return drive(model, joint_updates(model, pair, range(model.n_layers), ["factors"]))


def check_weight(found: JointWeight[Tensor], theirs: oracle.Solution, cancellation: float) -> None:
    """Compare one weight's factors with the dense least-norm solution, to its condition."""
    bound = CAPTURED * theirs.condition * (1 + cancellation)
    agree(found.condition, theirs.condition, CAPTURED * theirs.condition, found.name)
    agree(found.norm, theirs.norm, bound, found.name)
    assert found.norm == pytest.approx(np.linalg.norm(found.singular_values), rel=1e-9)
    assert found.input is not UNSET
    assert found.output is not UNSET
    pieces = found.input.double().numpy(), found.output.double().numpy()
    agree(pieces[1], theirs.targets, CAPTURED * cancellation, found.name)
    agree(pieces[0].T @ pieces[1], theirs.dense, bound, found.name)
    scale = np.linalg.norm(theirs.targets)
    assert np.linalg.norm(theirs.rows @ pieces[0].T @ pieces[1] - theirs.targets) <= bound * scale


def check_joint(subject: Subject, found: JointUpdate[Tensor], baseline: str) -> None:
    """Compare a layer's joint update with the oracle's."""
    question, positions = subject.question(baseline), list(found.positions)
    theirs = oracle.joint(question, found.layer, positions)
    full, base = question.full, question.base

    def lost(point: str) -> float:
        one, other = full[found.layer, point][positions], base[found.layer, point][positions]
        return oracle.cancellation(one, other)

    first, second = found.weights
    assert first.name == f"transformer.h.{found.layer}.mlp.c_fc.weight"
    assert second.name == f"transformer.h.{found.layer}.mlp.c_proj.weight"
    check_weight(first, theirs.w_in, lost("mlp_in"))
    check_weight(second, theirs.w_out, lost("resid_mid"))
    assert found.condition == max(first.condition, second.condition)


@only_tiny
@pytest.mark.parametrize("positions", [(0, 1, 2), (2, 0)])
@pytest.mark.parametrize("baseline", BASELINES)
def test_joint_updates_equal_the_oracles(
    subject: Subject, baseline: str, positions: tuple[int, ...]
) -> None:
    """Products of the factors, norms, singular values, conditions and ranks equal the oracle's."""
    found = asked(subject, baseline, positions)
    assert [one.layer for one in found] == [0, 1, 2]
    for one in found:
        assert tuple(one.positions) == positions
        check_joint(subject, one, baseline)
        theirs = oracle.joint(subject.question(baseline), one.layer, positions)
        for weight, solution in zip(one.weights, (theirs.w_in, theirs.w_out), strict=True):
            agree(weight.singular_values, solution.singular_values, 1e-3)
            assert one.rank == solution.rank == len(positions)


def test_joint_updates_of_the_bundled_model_equal_the_oracles(subject: Subject) -> None:
    """The joint update of the last layer equals the oracle's on the bundled model too, without the
    singular values."""
    check_joint(subject, asked(subject, "matched", (0, 1, 2))[-1], "matched")


@only_tiny
@pytest.mark.parametrize("apply", ["factored", "materialized"])
@pytest.mark.parametrize("scope", ["projection", "block"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_one_joint_patch_holds_at_every_position(
    subject: Subject, baseline: str, scope: Scope, apply: Apply
) -> None:
    """In float64 the joint check holds at all positions at once, its unpatched error equals the
    oracle's, and every control fails. Δh at the attention output is exact too."""
    model, pair, question = subject.model, subject.pair(baseline), subject.question(baseline)
    procedure = Procedure(scope, torch.float64, apply=apply, joint=True)
    checks = drive(model, block_checks(model, pair, range(3), procedure))
    assert [(one.layer, one.position) for one in checks] == [
        (layer, j) for layer in range(3) for j in range(len(QUERY))
    ]
    for check in checks:
        truth = oracle.joint(question, check.layer, range(len(QUERY)))
        theirs = (
            oracle.joint_check(question, check.layer, range(len(QUERY)))[check.position]
            if scope == "block"
            else oracle.projection_check(question, check.layer, check.position)
        )
        assert theirs.relative_error <= FLOAT64 * truth.w_in.condition
        assert (check.relative_error or 0.0) <= check.tolerance
        assert check.holds
        agree(check.magnitude, theirs.magnitude, 1e-10)
        agree(check.unpatched_relative_error, theirs.unpatched_relative_error, 1e-9)
        assert isinstance(check.bias_only_relative_error, float)
        assert check.bias_only_relative_error <= check.tolerance
        assert set(check.controls or {}) == set(CONTROLS[scope])
        for name, error in (check.controls or {}).items():
            assert error is not None
            assert error > check.tolerance, name


@only_tiny
@pytest.mark.parametrize("baseline", ["matched", "alone"])
def test_controls_of_a_joint_check_equal_the_oracles(subject: Subject, baseline: str) -> None:
    """Each half of the patch has the error of the oracle's run with only that weight changed."""
    model, pair, question = subject.model, subject.pair(baseline), subject.question(baseline)
    procedure = Procedure("block", torch.float64, joint=True)
    for check in drive(model, block_checks(model, pair, range(3), procedure)):
        patch = oracle.joint(question, check.layer, range(len(QUERY))).patch
        expected = question.full[check.layer, "resid_post"][check.position]
        for name, part in (
            ("without_bias", oracle.Patch(w_in=patch.w_in)),
            ("without_weight", oracle.Patch(w_out=patch.w_out)),
        ):
            reached = question.patched({check.layer: part})[check.layer, "resid_post"]
            error = oracle.relative_error(reached[check.position], expected)
            agree((check.controls or {})[name], error, 1e-9, (name, check.layer))


@pytest.mark.parametrize("scope", ["projection", "block"])
def test_joint_checks_hold_in_float32(subject: Subject, scope: Scope) -> None:
    """Joint checks hold in the resident dtype too, on both models."""
    model, pair = subject.model, subject.pair("matched")
    procedure = Procedure(scope, torch.float32, joint=True)
    for check in drive(model, block_checks(model, pair, subject.layers, procedure)):
        assert check.verdict == "holds", check


@only_tiny
@pytest.mark.parametrize("count", [32, 33])
def test_joint_update_of_dependent_rows_is_refused_with_its_condition(
    subject: Subject, count: int
) -> None:
    """33 vectors of 32 numbers are dependent, so updates and checks are refused with the condition.
    32 vectors can be solved."""
    model = subject.model
    query = [1 + (37 * i) % 250 for i in range(count)]
    pair = resolve_pair(model, [3, 4, 5], query, "matched", "all")
    procedure = Procedure(joint=True, dtype=torch.float64, controls=False)
    if count == 32:
        (found,) = drive(model, joint_updates(model, pair, [1], []))
        assert found.rank == 32
        assert 10 < found.condition < 1e6
        return
    for question in (
        joint_updates(model, pair, [1], []),
        block_checks(model, pair, [1], procedure),
    ):
        with pytest.raises(DependentRows) as refused:
            drive(model, question)
        assert refused.value.condition > 1e6


@only_tiny
def test_equal_contexts_have_a_zero_joint_update(subject: Subject) -> None:
    """If the baseline reads the same context, both weights' updates are zero in every number."""
    context, query = subject.ids(CONTEXT), subject.ids(QUERY)
    same = AnotherContext(context=list(context))
    pair = resolve_pair(subject.model, context, query, same, "all")
    for found in drive(subject.model, joint_updates(subject.model, pair, range(3), ["factors"])):
        for weight in found.weights:
            assert weight.norm == 0.0
            assert list(weight.singular_values) == [0.0, 0.0, 0.0]
            assert weight.output is not UNSET
            assert not bool(weight.output.any())
