"""Weight updates of every baseline, position and layer, compared with the oracle's matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.common import UNSET
from schemas.pairs import AnotherContext
from schemas.weight_updates import Include, Norms, Update, WeightUpdatesAnswer
from service.analysis.pairs import resolve_pair
from service.analysis.weight_updates import weight_updates
from service.engine import drive
from tests import oracle
from tests.analysis.subjects import (
    BASELINES,
    CAPTURED,
    CONTEXT,
    QUERY,
    Subject,
    agree,
    distance,
    factors_of,
)

EVERYTHING: tuple[Include, ...] = ("factors", "bias", "next_tokens")
EPSILON = float(np.finfo(np.float32).eps)


def asked(subject: Subject, baseline: str, *include: Include) -> WeightUpdatesAnswer[Tensor]:
    """Updates of all layers at all query positions."""
    layers = range(subject.model.n_layers)
    return drive(
        subject.model, weight_updates(subject.model, [subject.pair(baseline)], layers, include)
    )[0]


def agree_norms(found: Norms, theirs: oracle.Difference, bound: float, what: object) -> None:
    """Assert that norms and cosine agree to `CAPTURED`, and the difference to `bound`."""
    agree(found.norm_with_context, theirs.norm_with_context, CAPTURED, what)
    agree(found.norm_baseline, theirs.norm_baseline, CAPTURED, what)
    agree(found.norm_difference, theirs.norm_difference, bound, what)
    assert found.cosine == pytest.approx(theirs.cosine, abs=2 * CAPTURED), what


@pytest.mark.parametrize("baseline", BASELINES)
def test_updates_equal_the_oracles(subject: Subject, baseline: str) -> None:
    """Norms, cosines, factors and bias equal the oracle's at each layer and position."""
    question, model = subject.question(baseline), subject.model
    answer = asked(subject, baseline, "factors", "bias")
    places = [(layer, j) for layer in range(model.n_layers) for j in range(len(QUERY))]
    assert [(one.layer, one.position) for one in answer.updates] == places
    assert answer.next_tokens is UNSET
    for one in answer.updates:
        theirs = oracle.update(question, one.layer, one.position)
        what, bound = (one.layer, one.position), CAPTURED * theirs.cancellation
        bound_h = CAPTURED * oracle.cancellation(theirs.h_with, theirs.h)
        agree(one.norm, theirs.norm, bound, what)
        (weight,) = one.weights
        assert weight.norm == one.norm
        agree(weight.relative_norm, theirs.relative_norm, bound, what)
        agree(weight.spectral_share, theirs.spectral_share, bound, what)
        agree_norms(one.mlp_in, theirs.mlp_in, bound, what)
        agree_norms(one.resid_mid, theirs.resid_mid, bound_h, what)
        a, b = factors_of(one)
        agree(a, theirs.input_factor, CAPTURED, what)
        agree(b, theirs.output_factor, bound, what)
        dense = np.outer(a.double(), b.double())
        agree(dense, theirs.dense, bound + CAPTURED, what)
        assert one.bias
        agree(one.bias.values, theirs.delta_h, bound_h, what)
        assert one.bias.parameter == f"transformer.h.{one.layer}.mlp.c_proj.bias"
        assert one.rank == 1
        assert tuple(weight.shape) == theirs.dense.shape == (model.d_model, model.d_mlp)
        assert weight.name == f"transformer.h.{one.layer}.mlp.c_fc.weight"
        assert one.below_noise == theirs.below_noise(EPSILON) == False  # noqa: E712


def test_norm_is_the_only_singular_value(subject: Subject) -> None:
    """The norm is the first singular value of the oracle's dense ΔW. All others are rounding."""
    last = asked(subject, "matched").updates[-1]
    values = oracle.update(subject.question("matched"), last.layer, last.position).singular_values()
    agree(last.norm, values[0], 1e-4)
    assert values[1] <= 1e-12 * values[0]


WRONG: dict[str, Callable[[oracle.Update, oracle.Update], tuple[object, object, object]]] = {
    "ε in the denominator": lambda u, _: (
        u.n / (u.n @ u.n + 0.01),
        u.output_factor,
        u.delta_h,
    ),
    "norm not squared": lambda u, _: (u.n / oracle.norm(u.n), u.output_factor, u.delta_h),
    "Δh for Δn": lambda u, _: (u.input_factor, u.delta_h @ u.block.w_in, u.delta_h),
    "Δn for Δh": lambda u, _: (u.input_factor, u.output_factor, u.delta_n),
    "before ln_2": lambda u, _: (
        u.h / (u.h @ u.h),
        u.delta_h @ u.block.w_in,
        u.delta_h,
    ),
    "n_C for n": lambda u, _: (u.n_with / (u.n_with @ u.n_with), u.output_factor, u.delta_h),
    "the sign": lambda u, _: (u.input_factor, -u.output_factor, -u.delta_h),
    "shifted positions": lambda _, v: (v.input_factor, v.output_factor, v.delta_h),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_planted_error_breaks_the_agreement_rule(
    subject: Subject,
    wrong: Callable[[oracle.Update, oracle.Update], tuple[object, object, object]],
) -> None:
    """A formula with this error misses the agreement rule by far in every layer."""
    question = subject.question("matched")
    for one in asked(subject, "matched", "factors", "bias").updates:
        if one.position == 0:
            continue
        assert one.bias
        theirs = oracle.update(question, one.layer, one.position)
        parts = wrong(theirs, oracle.update(question, one.layer, one.position - 1))
        bounds = (
            CAPTURED,
            CAPTURED * theirs.cancellation,
            CAPTURED * oracle.cancellation(theirs.h_with, theirs.h),
        )
        found = (*factors_of(one), one.bias.values)
        misses = [
            distance(np.asarray(mine), part) / bound  # type: ignore[arg-type]
            for mine, part, bound in zip(found, parts, bounds, strict=True)
        ]
        assert max(misses) > 5, (one.layer, one.position, misses)


def test_matched_and_alone_differ_as_the_oracles_do(subject: Subject) -> None:
    """The norms of `matched` and `alone` differ by the oracle's difference, because the query's
    positions differ."""
    matched, alone = (asked(subject, name).updates for name in ("matched", "alone"))
    for one, other in zip(matched, alone, strict=True):
        ours = one.norm - other.norm
        theirs = [
            oracle.update(subject.question(name), one.layer, one.position).norm
            for name in ("matched", "alone")
        ]
        assert abs(ours - (theirs[0] - theirs[1])) <= 1e-4 * max(theirs)
    assert max(abs(a.norm - b.norm) / a.norm for a, b in zip(matched, alone, strict=True)) > 1e-2


@pytest.mark.parametrize("include", [(), ("factors",), ("bias",), EVERYTHING])
def test_field_is_absent_unless_requested(subject: Subject, include: tuple[Include, ...]) -> None:
    """A field is present only with its include, and the norms do not depend on the includes."""
    answer, full = asked(subject, "matched", *include), asked(subject, "matched", *EVERYTHING)
    assert (answer.next_tokens is not UNSET) == ("next_tokens" in include)
    for one, other in zip(answer.updates, full.updates, strict=True):
        assert (one.input is not UNSET) == ("factors" in include)
        assert all((weight.output is not UNSET) == ("factors" in include) for weight in one.weights)
        assert (one.bias is not UNSET) == ("bias" in include)
        assert one.w_out is one.gain is UNSET
        assert one.split is UNSET
        assert one.reuse is UNSET
        agree(one.norm, other.norm, 1e-5, (one.layer, one.position))


def test_updates_keep_the_requested_order(subject: Subject) -> None:
    """Updates come by layer, then by position, in the requested order."""
    model, pair = subject.model, subject.pair("matched", [2, 0])
    (answer,) = drive(model, weight_updates(model, [pair], [2, 0], []))
    assert [(one.layer, one.position) for one in answer.updates] == [(2, 2), (2, 0), (0, 2), (0, 0)]
    for one in answer.updates:
        theirs = oracle.update(subject.question("matched"), one.layer, one.position)
        agree(one.norm, theirs.norm, CAPTURED * theirs.cancellation)


def nothing_changed(one: Update[Tensor]) -> bool:
    """Whether every number of an update is that of a context without effect."""
    (weight,) = one.weights
    return (
        one.below_noise
        and (one.rank, one.norm) == (0, 0.0)
        and (weight.norm, weight.relative_norm, weight.spectral_share) == (0.0, 0.0, 0.0)
        and one.mlp_in.norm_difference == one.resid_mid.norm_difference == 0.0
        and one.mlp_in.cosine == pytest.approx(1.0, abs=1e-12)
        and not factors_of(one)[1].any()
        and one.bias is not UNSET
        and not one.bias.values.any()
    )


def test_equal_contexts_have_a_zero_update(subject: Subject) -> None:
    """If the baseline reads the same context, updates have rank 0, norm 0 and cosine 1, are below
    noise, and the next tokens are equal."""
    model, context = subject.model, subject.ids(CONTEXT)
    same = AnotherContext(context=list(context))
    pair = resolve_pair(model, context, subject.ids(QUERY), same, "all")
    (answer,) = drive(model, weight_updates(model, [pair], range(model.n_layers), EVERYTHING))
    assert all(nothing_changed(one) for one in answer.updates)
    assert answer.next_tokens
    for one in answer.next_tokens:
        assert one.kl_divergence <= 1e-12
        assert one.with_context == one.baseline


def test_real_update_is_not_below_noise(subject: Subject) -> None:
    """No update of a real context is below noise: ‖Δn‖ is at least 64·ε·‖n‖."""
    real = asked(subject, "matched").updates
    assert not any(one.below_noise for one in real)
    norms = [one.mlp_in for one in real]
    assert all(one.norm_difference >= 64 * EPSILON * one.norm_baseline for one in norms)


def test_factors_are_float32_on_the_cpu(subject: Subject) -> None:
    """Factors and bias are float32 vectors on the CPU, whatever dtype they are formed in."""
    one = asked(subject, "matched", "factors", "bias").updates[0]
    assert one.bias
    for tensor in (*factors_of(one), one.bias.values):
        assert (tensor.dtype, tensor.device.type, tensor.dim()) == (torch.float32, "cpu", 1)
