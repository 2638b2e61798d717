"""The sequential stream: updates and checks on patched layers, compared with the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.equivalence_checks import Apply
from schemas.pairs import Stream
from schemas.weight_updates import Update
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.weight_updates import weight_updates
from service.engine import drive
from tests import oracle
from tests.analysis.subjects import BASELINES, CAPTURED, QUERY, Subject, agree, distance, factors_of
from tests.oracle.checks import Scope

only_tiny = pytest.mark.parametrize("subject", ["tiny"], indirect=True)
GATE: dict[tuple[Scope, torch.dtype], float] = {
    ("projection", torch.float32): 1e-5,
    ("block", torch.float32): 2e-5,
    ("projection", torch.float64): 1e-12,
    ("block", torch.float64): 1e-12,
}


def updates(
    subject: Subject, baseline: str, stream: Stream = "sequential"
) -> Sequence[Update[Tensor]]:
    """Updates of all layers at all query positions, with factors and bias."""
    model, pair = subject.model, subject.pair(baseline)
    layers = range(model.n_layers)
    return drive(model, weight_updates(model, [pair], layers, ["factors", "bias"], stream))[
        0
    ].updates


def check_updates(subject: Subject, baseline: str, positions: range) -> None:
    """Compare the updates at these positions with the oracle's dense ones."""
    question = subject.question(baseline)
    for one in updates(subject, baseline):
        if one.position not in positions:
            continue
        theirs = oracle.sequential(question, one.position).updates[one.layer]
        what, bound = (one.layer, one.position), CAPTURED * theirs.cancellation
        bound_h = CAPTURED * oracle.cancellation(theirs.h_with, theirs.h)
        agree(one.norm, theirs.norm, bound, what)
        agree(one.weights[0].relative_norm, theirs.relative_norm, bound, what)
        agree(one.mlp_in.norm_baseline, oracle.norm(theirs.n), CAPTURED, what)
        agree(one.mlp_in.norm_difference, oracle.norm(theirs.delta_n), bound, what)
        agree(one.resid_mid.norm_baseline, oracle.norm(theirs.h), CAPTURED, what)
        assert one.bias
        agree(one.bias.values, theirs.delta_h, bound_h, what)
        a, b = factors_of(one)
        agree(a, theirs.input_factor, CAPTURED, what)
        agree(b, theirs.output_factor, bound, what)


@only_tiny
@pytest.mark.parametrize("baseline", BASELINES)
def test_updates_equal_the_oracles(subject: Subject, baseline: str) -> None:
    """Norms, factors and Δh at every layer and position equal those of whole patched runs."""
    check_updates(subject, baseline, range(len(QUERY)))


def test_updates_of_the_bundled_model_equal_the_oracles(subject: Subject) -> None:
    """The updates at the last position equal the oracle's on the bundled model too."""
    check_updates(subject, "matched", range(len(QUERY) - 1, len(QUERY)))


@only_tiny
@pytest.mark.parametrize("baseline", BASELINES)
def test_streams_agree_in_the_first_layer_only(subject: Subject, baseline: str) -> None:
    """In the first layer both streams are the same. Above it they differ by far more than the
    agreement rule allows, so the tests above distinguish them."""
    pairs = zip(updates(subject, baseline), updates(subject, baseline, "free"), strict=True)
    for sequential, free in pairs:
        assert sequential.bias
        assert free.bias
        gap = distance(sequential.bias.values, free.bias.values)
        cancelled = free.resid_mid.norm_with_context + free.resid_mid.norm_baseline
        bound = CAPTURED * cancelled / free.resid_mid.norm_difference
        assert gap <= bound if sequential.layer == 0 else gap > 100 * bound


@only_tiny
def test_layers_below_a_requested_one_are_patched(subject: Subject) -> None:
    """An update does not depend on which layers are requested."""
    model, pair = subject.model, subject.pair("alone")
    every = {(one.layer, one.position): one for one in updates(subject, "alone")}
    asked = drive(model, weight_updates(model, [pair], [2, 1], ["factors"], "sequential"))[
        0
    ].updates
    assert [one.layer for one in asked] == [2] * len(QUERY) + [1] * len(QUERY)
    for one in asked:
        agree(one.norm, every[one.layer, one.position].norm, 1e-4)


@only_tiny
@pytest.mark.parametrize("apply", ["factored", "materialized"])
@pytest.mark.parametrize("scope", ["projection", "block"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_checks_equal_the_oracles(
    subject: Subject, baseline: str, scope: Scope, apply: Apply
) -> None:
    """In float64 each check holds to 1e-12. Unpatched error, tolerance and controls equal those of
    the oracle, which patches the layers below too."""
    model, pair, question = subject.model, subject.pair(baseline), subject.question(baseline)
    procedure = Procedure(scope, torch.float64, "sequential", apply=apply)
    truth = oracle.block_check if scope == "block" else oracle.projection_check
    for check in drive(model, block_checks(model, pair, range(3), procedure)):
        what = (check.layer, check.position)
        theirs = truth(question, check.layer, check.position, "sequential")
        change = oracle.sequential(question, check.position).updates[check.layer]
        allowed = oracle.tolerance(GATE[scope, torch.float64], change, theirs.expected)
        agree(check.tolerance, allowed, 1e-9, what)
        assert check.relative_error is not None
        assert check.relative_error <= allowed, what
        assert check.holds
        agree(check.magnitude, theirs.magnitude, 1e-10, what)
        agree(check.unpatched_relative_error, theirs.unpatched_relative_error, 1e-9, what)
        wrong = oracle.controls(question, check.layer, check.position, scope, "sequential")
        assert wrong.pop("bias_only_at_attention") <= allowed
        assert isinstance(check.bias_only_relative_error, float)
        assert check.bias_only_relative_error <= allowed
        assert check.controls
        assert set(check.controls) == {*wrong, "random_update", "shuffled_context"}
        for name, error in wrong.items():
            agree(check.controls[name], error, 1e-9, (what, name))
            assert error > 1e-3
        for name in ("random_update", "shuffled_context"):
            assert (check.controls[name] or 0.0) > 1e-3, (what, name)


@pytest.mark.parametrize("baseline", ["matched", "alone"])
def test_checks_hold_in_float32(subject: Subject, baseline: str) -> None:
    """Checks hold in the resident dtype too, on both models."""
    model, pair = subject.model, subject.pair(baseline, "last")
    procedure = Procedure("block", torch.float32, "sequential")
    checks = drive(model, block_checks(model, pair, subject.layers, procedure))
    assert [check.layer for check in checks] == list(subject.layers)
    for check in checks:
        assert check.verdict == "holds", check
        assert np.isfinite(check.improvement or np.nan)
