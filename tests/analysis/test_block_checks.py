"""Block checks, compared with the oracle's runs with really patched weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from schemas.common import UNSET, DType
from schemas.equivalence_checks import Apply, Check
from schemas.pairs import AnotherContext, BaselineName
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.verdicts import worst
from service.engine import Model, drive, load
from tests import oracle
from tests.analysis.subjects import BASELINES, CAPTURED, CONTEXT, QUERY, Subject, agree
from tests.engine.made import resident, unchanged
from tests.oracle import Update

SEED = 20251216
"""The documented seed of the controls."""
EXACT = "bias_only_at_attention"
"""The oracle's name for Δh at the attention output, which is exact and no control."""

Scope = Literal["projection", "block"]
SCOPES: tuple[Scope, ...] = ("projection", "block")
GATES = {
    ("projection", torch.float32): 1e-5,
    ("block", torch.float32): 2e-5,
    ("projection", torch.float64): 1e-12,
    ("block", torch.float64): 1e-12,
}
PRECISIONS = [(torch.float32, CAPTURED), (torch.float64, 1e-13)]
POSITIONS = (2, 0)


def checks(model: Model, pair: Pair, layers: Sequence[int], procedure: Procedure) -> list[Check]:
    """The checks of these layers."""
    return drive(model, block_checks(model, pair, layers, procedure))


@cache
def theirs_of(
    subject: Subject, baseline: str, scope: Scope, layer: int, position: int
) -> oracle.Check:
    """The oracle's check of a layer and position. It is made once for all precisions."""
    check = oracle.projection_check if scope == "projection" else oracle.block_check
    return check(subject.question(baseline), layer, position)


@cache
def controls_of(
    subject: Subject, baseline: str, scope: Scope, layer: int, position: int
) -> dict[str, float]:
    """The oracle's controls, given the service's seeded direction and order."""
    return oracle.controls(
        subject.question(baseline),
        layer,
        position,
        scope,
        random_output=random_output(subject, layer, position),
        order=order_of(subject.pair(baseline)),
    )


def compared_noise(check: oracle.Check) -> float:
    """(‖expected‖ + ‖unpatched‖)/‖their difference‖."""
    return oracle.cancellation(check.expected, check.unpatched)


@pytest.mark.parametrize("apply", ["factored", "materialized"])
@pytest.mark.parametrize(("dtype", "unit"), PRECISIONS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_checks_hold_and_their_figures_equal_the_oracles(
    subject: Subject, baseline: str, scope: Scope, dtype: torch.dtype, unit: float, apply: Apply
) -> None:
    """Magnitude, unpatched error and tolerance equal the oracle's, and the patched error is
    rounding."""
    procedure = Procedure(scope=scope, dtype=dtype, apply=apply, controls=False)
    pair = subject.pair(baseline, POSITIONS)
    found = checks(subject.model, pair, subject.layers, procedure)
    places = [(layer, position) for layer in subject.layers for position in POSITIONS]
    assert [(one.layer, one.position) for one in found] == places
    for one in found:
        theirs = theirs_of(subject, baseline, scope, one.layer, one.position)
        change: Update = oracle.update(subject.question(baseline), one.layer, one.position)
        what = (one.layer, one.position)
        agree(one.magnitude, theirs.magnitude, unit, what)
        unpatched = theirs.unpatched_relative_error
        agree(one.unpatched_relative_error, unpatched, unit * compared_noise(theirs), what)
        bound = oracle.tolerance(GATES[scope, dtype], change, theirs.expected)
        agree(one.tolerance, bound, 2 * unit, what)
        assert one.relative_error is not None
        assert one.relative_error <= one.tolerance
        assert one.error == pytest.approx(one.relative_error * one.magnitude, rel=1e-9)
        width = len(theirs.expected)
        assert one.max_abs_error <= one.error <= one.max_abs_error * width**0.5 * (1 + 1e-9)
        assert theirs.relative_error <= 1e-12 * max(1.0, bound / GATES[scope, dtype])
        assert (one.verdict, one.holds, one.vacuous) == ("holds", True, False)
        assert one.improvement is not None
        assert one.improvement >= 1e4
        floored = max(one.relative_error, torch.finfo(dtype).eps)
        agree(one.improvement, (one.unpatched_relative_error or 0.0) / floored, 1e-9, what)
        assert one.controls is UNSET
        assert one.control_reasons is UNSET
        assert one.bias_only_relative_error is UNSET


def random_output(subject: Subject, layer: int, position: int) -> NDArray[np.float64]:
    """The seeded direction of the control `random_update`."""
    width = subject.model.blocks[0].w_in.width
    return np.random.default_rng((SEED, layer, position)).standard_normal(width)


def order_of(pair: Pair) -> list[int]:
    """The seeded order of the control `shuffled_context`. An anchor stays first."""
    first = pair.beginning
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(pair.context) - first, generator=generator) + first
    return [*range(first), *order.tolist()]


@pytest.mark.parametrize(("dtype", "unit"), PRECISIONS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_controls_equal_the_oracles_and_fail(
    subject: Subject, baseline: str, scope: Scope, dtype: torch.dtype, unit: float
) -> None:
    """Each control's error equals the oracle's with the same wrong patch and is far too large.

    Only Δh at the attention output is as exact as the patch itself, so it is no control.
    """
    pair, question = subject.pair(baseline, [2]), subject.question(baseline)
    found = checks(subject.model, pair, subject.layers, Procedure(scope=scope, dtype=dtype))
    for one in found:
        theirs = controls_of(subject, baseline, scope, one.layer, one.position)
        change = oracle.update(question, one.layer, one.position)
        noise = 1.0 + change.cancellation + oracle.cancellation(change.h_with, change.h)
        noise += compared_noise(theirs_of(subject, baseline, scope, one.layer, one.position))
        assert one.controls
        assert set(one.controls) == set(theirs) - {EXACT}
        assert one.control_reasons is UNSET
        assert theirs[EXACT] <= 1e-12 * one.tolerance / GATES[scope, dtype]
        assert isinstance(one.bias_only_relative_error, float)
        assert one.bias_only_relative_error <= one.tolerance, one.layer
        for name, error in one.controls.items():
            assert error is not None
            what = (name, one.layer)
            agree(error, theirs[name], unit * noise, what)
            assert error > 100 * one.tolerance, what


def test_shuffled_context_is_null_if_no_order_differs(subject: Subject) -> None:
    """A context of one token, or of equal tokens, has no other order: `shuffled_context` is null
    with a reason, and the other controls have figures."""
    model, query = subject.model, subject.ids(QUERY)
    one, two = subject.ids([3, 4])
    cases: list[tuple[tuple[int, ...], BaselineName]] = [
        ((one,), "matched"),
        ((one,) * 5, "matched"),
        ((one,), "anchored"),
    ]
    for context, baseline in cases:
        pair = resolve_pair(model, context, query, baseline, "last")
        for found in checks(model, pair, [0, 2], Procedure()):
            assert found.controls
            assert [name for name, error in found.controls.items() if error is None] == [
                "shuffled_context"
            ]
            assert found.control_reasons
            assert list(found.control_reasons) == ["shuffled_context"]
    pair = resolve_pair(model, (one, two), query, "matched", "last")
    (found,) = checks(model, pair, [2], Procedure())
    assert found.controls
    assert found.controls["shuffled_context"] is not None
    assert found.control_reasons is UNSET


@pytest.mark.parametrize("scope", SCOPES)
def test_check_of_equal_contexts_is_vacuous(subject: Subject, scope: Scope) -> None:
    """If the baseline reads the same context, the check is vacuous and its improvement is 0."""
    model, context = subject.model, subject.ids(CONTEXT)
    same = AnotherContext(context=list(context))
    pair = resolve_pair(model, context, subject.ids(QUERY), same, "last")
    for one in checks(model, pair, subject.layers, Procedure(scope=scope, controls=False)):
        assert (one.verdict, one.holds, one.vacuous) == ("vacuous", False, True)
        assert one.unpatched_relative_error == one.improvement == 0.0
        assert one.relative_error is not None
        assert one.relative_error <= one.tolerance


@pytest.mark.parametrize(
    ("tolerance", "verdict"), [(0.0, "fails"), (1e-20, "fails"), (1e-3, "holds"), (1.0, "vacuous")]
)
def test_requested_tolerance_replaces_the_derived_one(
    subject: Subject, tolerance: float, verdict: str
) -> None:
    """The requested tolerance decides the verdict at every layer and position."""
    procedure = Procedure(tolerance=tolerance, controls=False)
    found = checks(subject.model, subject.pair("matched"), subject.layers, procedure)
    assert {one.tolerance for one in found} == {tolerance}
    assert worst([one.verdict for one in found]) == verdict
    for one in found:
        assert one.relative_error is not None
        assert one.relative_error <= 2e-5


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_checks_of_a_half_precision_model_hold_in_float32_and_float64(
    subject: Subject, tiny_folder: Path, name: DType
) -> None:
    """Rounded weights are a model too, and the identity holds for it in float32 and float64."""
    folder = "bundled" if subject.model.id == "bundled" else str(tiny_folder)
    model = load(folder, revision=None, device="cpu", dtype=name)
    pair = subject.pair("matched", "last")
    for dtype in (torch.float32, torch.float64):
        found = checks(model, pair, subject.layers, Procedure(dtype=dtype, controls=False))
        assert [one.verdict for one in found] == ["holds"] * len(subject.layers)


def test_checks_leave_the_resident_weights_bit_equal(subject: Subject) -> None:
    """Checks with all controls, in both dtypes and both ways to apply, leave every
    bit."""
    before = resident(subject.model)
    ways: list[tuple[torch.dtype, Apply]] = [
        (torch.float32, "materialized"),
        (torch.float64, "factored"),
    ]
    for dtype, apply in ways:
        procedure = Procedure(dtype=dtype, apply=apply)
        checks(subject.model, subject.pair("alone"), subject.layers, procedure)
    assert unchanged(subject.model, before)
