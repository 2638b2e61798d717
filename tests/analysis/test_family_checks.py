"""Equivalence checks of every family in every scope, stream and form, compared with the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import pytest
import torch

from schemas.common import UNSET
from schemas.equivalence_checks import Apply, Check
from schemas.pairs import Form, Stream
from service.analysis.block_checks import CONTROLS, PARALLEL, Procedure, block_checks
from service.analysis.model_checks import CONTROL, model_checks
from service.engine import drive
from tests import oracle
from tests.analysis.subjects import EXTENTS, Subject, agree, baselines_of
from tests.analysis.test_block_checks import EXACT, GATES, PRECISIONS, order_of
from tests.analysis.test_block_checks import random_output as drawn
from tests.analysis.test_model_checks import AGREES
from tests.oracle.checks import Scope

POSITION = 2
CASES: list[tuple[Scope, Stream, Form]] = [
    ("projection", "free", "bias"),
    ("projection", "sequential", "bias"),
    *(("block", stream, form) for stream in ("free", "sequential") for form in ("bias", "weights")),
]


def procedures(
    scope: Scope, stream: Stream, form: Form, dtype: torch.dtype, extent: str
) -> Iterator[Procedure]:
    """The procedure in one way of applying W + ΔW, with its controls, and in the slow suite in the
    other way too."""
    ways: tuple[Apply, ...] = ("materialized", "factored")
    if dtype == torch.float64:
        ways = ("factored", "materialized")
    yield Procedure(scope, dtype, stream, None, ways[0], form)
    if extent == "every":
        yield Procedure(scope, dtype, stream, None, ways[1], form, controls=False)


def exact(one: Check, dtype: torch.dtype) -> bool:
    """Whether the relative error is within the tolerance, and rounding in float64."""
    error = one.relative_error
    assert error is not None
    return error <= one.tolerance and (dtype == torch.float32 or error <= 1e-12)


@EXTENTS
@pytest.mark.parametrize(("dtype", "unit"), PRECISIONS)
@pytest.mark.parametrize(("scope", "stream", "form"), CASES)
def test_layer_checks_of_every_family_hold(
    variant: Subject,
    scope: Scope,
    stream: Stream,
    form: Form,
    dtype: torch.dtype,
    unit: float,
    extent: str,
) -> None:
    """Each check holds, or is vacuous by theorem in a parallel block. Its figures equal the
    oracle's, and its controls are far worse than the patch."""
    model = variant.model
    for baseline in baselines_of(model, extent):
        question, pair = variant.question(baseline), variant.pair(baseline, [POSITION])
        for procedure in procedures(scope, stream, form, dtype, extent):
            for one in drive(model, block_checks(model, pair, range(model.n_layers), procedure)):
                what = (baseline, one.layer, procedure.apply)
                change, theirs = truth(question, one.layer, scope, stream, form)
                assert exact(one, dtype), what
                agree(one.magnitude, theirs.magnitude, unit, what)
                allowed = oracle.tolerance(GATES[scope, dtype], change, theirs.expected)
                agree(one.tolerance, allowed, 4 * unit, what)
                still = model.parallel and (stream == "sequential" or one.layer == 0)
                if still and scope == "projection":
                    assert (one.verdict, one.vacuous_reason) == ("vacuous", PARALLEL), what
                else:
                    assert (one.verdict, one.vacuous_reason) == ("holds", UNSET), what
                    noise = oracle.cancellation(theirs.expected, theirs.unpatched)
                    unpatched = theirs.unpatched_relative_error
                    agree(one.unpatched_relative_error, unpatched, unit * noise, what)
                    assert unpatched > 1e3 * one.tolerance
                if procedure.controls:
                    check_controls(variant, baseline, procedure, one, change, still, unit)
                else:
                    assert one.controls is one.control_reasons is UNSET


@lru_cache(maxsize=64)
def truth(
    question: oracle.Question, layer: int, scope: Scope, stream: Stream, form: Form
) -> tuple[oracle.Update, oracle.Check]:
    """The oracle's update and check of a layer, made once for both dtypes."""
    if stream == "free":
        change = oracle.update(question, layer)
    else:
        change = oracle.sequential(question, form=form).updates[layer]
    if scope == "projection":
        return change, oracle.projection_check(question, layer, stream=stream)
    return change, oracle.block_check(question, layer, stream=stream, form=form)


def check_controls(
    variant: Subject,
    baseline: str,
    procedure: Procedure,
    one: Check,
    change: oracle.Update,
    still: bool,
    unit: float,
) -> None:
    """The controls are far worse than the patch, and equal the oracle's in form `bias`."""
    question, scope = variant.question(baseline), procedure.scope
    assert scope != "model"
    assert one.controls
    assert set(one.controls) == set(CONTROLS[scope])
    lacking = {"random_update", "without_weight"} & set(one.controls) if still else set()
    if still and scope == "projection" and one.layer == 0:
        lacking.add("shuffled_context")
    assert set(one.control_reasons or {}) == lacking
    assert {name for name, error in one.controls.items() if error is None} == lacking
    if variant.model.parallel:
        assert one.bias_only_relative_error is None
    else:
        assert isinstance(one.bias_only_relative_error, float)
        assert one.bias_only_relative_error <= one.tolerance
    idle = still and scope == "projection"
    for name, error in one.controls.items():
        assert error is None or idle or error > 100 * one.tolerance, (baseline, one.layer, name)
    # The oracle's controls take long, so float32 is left out.
    if procedure.form == "weights" or idle or procedure.dtype == torch.float32:
        return
    theirs = oracle.controls(
        question,
        one.layer,
        scope=scope,
        stream=procedure.stream,
        random_output=None if still else drawn(variant, one.layer, POSITION),
        order=order_of(variant.pair(baseline)),
    )
    noise = 1.0 + oracle.cancellation(change.h_with, change.h)
    noise += 0.0 if still else change.cancellation
    for name, error in one.controls.items():
        if error is not None:
            agree(error, theirs[name], 2 * unit * noise, (baseline, one.layer, name))
    assert not theirs.keys() - one.controls.keys() - {EXACT}


@EXTENTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["bias", "weights"])
def test_model_checks_of_every_family_hold(
    variant: Subject, form: Form, dtype: torch.dtype, extent: str
) -> None:
    """With all blocks patched in sequence each block's output and the logits hold, in float64 to
    1e-12, and their figures and the control equal the oracle's."""
    model, agrees = variant.model, AGREES[dtype]
    applies: tuple[Apply, ...] = ("materialized", "factored")
    for baseline, apply in product(baselines_of(model, extent), applies):
        question, pair = variant.question(baseline), variant.pair(baseline, [POSITION])
        procedure = Procedure(dtype=dtype, apply=apply, form=form)
        checks, (logits,) = drive(
            model, model_checks(model, pair, range(model.n_layers), procedure)
        )
        together = free_patches(question, form)
        for one in checks:
            what = (baseline, one.layer)
            theirs = oracle.model_check(question, one.layer, form=form)
            assert exact(one, dtype), what
            assert one.verdict == "holds", what
            agree(one.magnitude, theirs.magnitude, agrees, what)
            agree(one.unpatched_relative_error, theirs.unpatched_relative_error, agrees, what)
            assert one.controls
            if one.layer:
                agree(one.controls[CONTROL], together[one.layer], agrees, what)
                assert together[one.layer] > 100 * one.tolerance, what
        theirs = oracle.logits_check(question, form=form)
        assert logits.verdict == "holds", baseline
        assert logits.relative_error is not None
        assert logits.relative_error <= (logits.tolerance if dtype == torch.float32 else 1e-12)
        assert logits.kl_divergence <= (1e-10 if dtype == torch.float32 else 1e-12)
        assert logits.same_top_token
        agree(logits.unpatched_relative_error, theirs.unpatched_relative_error, agrees, baseline)
        apart = oracle.next_token_divergence(question)
        agree(logits.unpatched_kl_divergence, apart, agrees, baseline)
        assert logits.controls
        agree(logits.controls[CONTROL], together[-1], agrees, baseline)


def free_patches(question: oracle.Question, form: Form) -> list[float]:
    """The relative error of each block, and of the logits, with all free-stream patches at once."""
    runs = oracle.sequential(question, form=form)
    errors = [
        oracle.relative_error(
            runs.free_stream[layer, "resid_post"][-1], question.full[layer, "resid_post"][-1]
        )
        for layer in range(question.model.n_layers)
    ]
    logits = oracle.relative_error(runs.logits_free_stream_patches, runs.logits_with_context)
    return [*errors, logits]
