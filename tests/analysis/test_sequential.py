"""The sequential stream: updates and checks on the patched stream, compared with the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.analysis.block_checks import LayerScope, Procedure, block_checks
from service.analysis.pairs import Stream
from service.analysis.weight_updates import Update, weight_updates
from service.engine import Apply, drive
from tests import oracle
from tests.analysis.subjects import BASELINES, CAPTURED, QUERY, Subject, agree, distance

only_tiny = pytest.mark.parametrize("subject", ["tiny"], indirect=True)
GATE: dict[tuple[LayerScope, torch.dtype], float] = {
    ("projection", torch.float32): 1e-5,
    ("block", torch.float32): 2e-5,
    ("projection", torch.float64): 1e-12,
    ("block", torch.float64): 1e-12,
}


def updates(subject: Subject, baseline: str, stream: Stream = "sequential") -> tuple[Update, ...]:
    """Updates of all layers and all query positions, with factors and bias."""
    model, pair = subject.model, subject.pair(baseline)
    layers = range(model.n_layers)
    return drive(model, weight_updates(model, pair, layers, ["factors", "bias"], stream)).updates


def check_updates(subject: Subject, baseline: str, positions: range) -> None:
    """Assert that the updates at these positions agree with the oracle's dense ones."""
    question = subject.question(baseline)
    for one in updates(subject, baseline):
        if one.position not in positions:
            continue
        theirs = oracle.sequential(question, one.position).updates[one.layer]
        what, bound = (one.layer, one.position), CAPTURED * theirs.cancellation
        bound_h = CAPTURED * oracle.cancellation(theirs.h_with, theirs.h)
        agree(one.norm, theirs.norm, bound, what)
        agree(one.relative_norm, theirs.relative_norm, bound, what)
        agree(one.mlp_in.norm_baseline, oracle.norm(theirs.n), CAPTURED, what)
        agree(one.mlp_in.norm_difference, oracle.norm(theirs.delta_n), bound, what)
        agree(one.resid_mid.norm_baseline, oracle.norm(theirs.h), CAPTURED, what)
        agree(one.bias, theirs.delta_h, bound_h, what)
        assert one.factors is not None
        agree(one.factors.input, theirs.input_factor, CAPTURED, what)
        agree(one.factors.output, theirs.output_factor, bound, what)


@only_tiny
@pytest.mark.parametrize("baseline", BASELINES)
def test_sequential_updates_equal_the_oracles(subject: Subject, baseline: str) -> None:
    """Norms, factors and Δh at every layer and position equal those of the oracle's patched
    runs."""
    check_updates(subject, baseline, range(len(QUERY)))


def test_updates_of_both_models_equal_the_oracles(subject: Subject) -> None:
    """The updates also equal the oracle's on the bundled model, at the last position."""
    check_updates(subject, "matched", range(len(QUERY) - 1, len(QUERY)))


@only_tiny
@pytest.mark.parametrize("baseline", BASELINES)
def test_streams_differ_above_the_first_layer(subject: Subject, baseline: str) -> None:
    """The streams are equal in the first layer and differ above it by far more than the agreement
    rule."""
    pairs = zip(updates(subject, baseline), updates(subject, baseline, "free"), strict=True)
    for sequential, free in pairs:
        assert sequential.bias is not None
        assert free.bias is not None
        gap = distance(sequential.bias, free.bias)
        cancelled = free.resid_mid.norm_with_context + free.resid_mid.norm_baseline
        bound = CAPTURED * cancelled / free.resid_mid.norm_difference
        assert gap <= bound if sequential.layer == 0 else gap > 100 * bound


@only_tiny
def test_layers_below_are_patched_if_not_reported(subject: Subject) -> None:
    """All layers below a requested layer are patched, whichever layers are reported."""
    model, pair = subject.model, subject.pair("alone")
    every = {(one.layer, one.position): one for one in updates(subject, "alone")}
    asked = drive(model, weight_updates(model, pair, [2, 1], ["factors"], "sequential")).updates
    assert [one.layer for one in asked] == [2] * len(QUERY) + [1] * len(QUERY)
    for one in asked:
        agree(one.norm, every[one.layer, one.position].norm, 1e-4)


@only_tiny
@pytest.mark.parametrize("apply", ["factored", "materialized"])
@pytest.mark.parametrize("scope", ["projection", "block"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_sequential_checks_equal_the_oracles(
    subject: Subject, baseline: str, scope: LayerScope, apply: Apply
) -> None:
    """In float64 each check holds, and its tolerance, unpatched error and controls equal the
    oracle's."""
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
        assert check.controls is not None
        for name, error in wrong.items():
            if name == "bias_only_at_attention":
                assert (check.controls[name] or 0.0) <= allowed
            else:
                agree(check.controls[name], error, 1e-9, (what, name))
                assert error > 1e-3
        for name in ("random_update", "shuffled_context"):
            assert (check.controls[name] or 0.0) > 1e-3, (what, name)


@pytest.mark.parametrize("baseline", ["matched", "alone"])
def test_checks_hold_in_float32(subject: Subject, baseline: str) -> None:
    """In float32 the checks hold on both models."""
    model, pair = subject.model, subject.pair(baseline, "last")
    procedure = Procedure("block", torch.float32, "sequential")
    checks = drive(model, block_checks(model, pair, subject.layers, procedure))
    assert [check.layer for check in checks] == list(subject.layers)
    for check in checks:
        assert check.verdict == "holds", check
        assert np.isfinite(check.improvement or np.nan)
