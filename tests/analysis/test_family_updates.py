"""Weight updates of every family in both streams and both forms, compared with the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from schemas.common import UNSET
from schemas.pairs import Form, Stream
from schemas.weight_updates import Update, WeightUpdatesAnswer
from service.analysis.weight_updates import weight_updates
from service.engine import drive
from tests import oracle
from tests.analysis.subjects import CAPTURED, EXTENTS, Subject, agree, baselines_of, factors_of
from tests.analysis.test_weight_updates import EPSILON, EVERYTHING, agree_norms
from tests.families import VARIANTS, ZERO_GAINS

FORMS: tuple[Form, ...] = ("bias", "weights")
STREAMS: tuple[Stream, ...] = ("free", "sequential")


def asked(
    subject: Subject, baseline: str, stream: Stream, form: Form
) -> WeightUpdatesAnswer[Tensor]:
    """Updates of all layers at the first and the last query position."""
    model, pair = subject.model, subject.pair(baseline, (2, 0))
    question = weight_updates(model, [pair], range(model.n_layers), EVERYTHING, stream, (), form)
    (answer,) = drive(model, question)
    return answer


def check_weights(subject: Subject, one: Update[Tensor], theirs: oracle.Update) -> None:
    """Compare ΔW of each first weight, and of all together."""
    what, bound = (one.layer, one.position), CAPTURED * theirs.cancellation
    below = theirs.below_noise(EPSILON)
    assert one.below_noise == below, what
    agree_norms(one.mlp_in, theirs.mlp_in, bound, what)
    a, b = factors_of(one)
    agree(a, theirs.input_factor, CAPTURED, what)
    if below:
        assert one.norm <= bound * theirs.block.frobenius_norm
        return
    agree(one.norm, theirs.norm, bound, what)
    agree(b, theirs.output_factor, bound, what)
    agree(np.outer(a.double(), b.double()), theirs.dense, bound + CAPTURED, what)
    count = len(one.weights)
    whole = np.split(theirs.block.w_in, count, axis=1)
    for weight, part, resident in zip(
        one.weights, np.split(theirs.dense, count, axis=1), whole, strict=True
    ):
        size = oracle.norm(part)
        agree(weight.norm, size, bound, what)
        agree(weight.relative_norm, size / oracle.norm(resident), bound, what)
        agree(weight.spectral_share, size / np.linalg.norm(resident, 2), bound, what)
    squares = sum(weight.norm**2 for weight in one.weights)
    assert one.norm**2 == pytest.approx(squares, rel=1e-9)


def check_carrier(subject: Subject, one: Update[Tensor], theirs: oracle.Update) -> None:
    """Compare the second weight, and the gain after it, that carry Δh."""
    what, carrier = (one.layer, one.position), theirs.carrier
    bound = CAPTURED * oracle.cancellation(theirs.h_with, theirs.h)
    assert one.w_out
    agree(one.w_out.input, carrier.input_factor, 2 * CAPTURED, what)
    size = oracle.norm(carrier.dense)
    relative = size / oracle.norm(subject.oracle.blocks[one.layer].second.weight)
    assert (one.gain is UNSET) == (carrier.gain is None), what
    if carrier.gain is not None:
        # y' − y_C is a difference of vectors of the size of y_C.
        bound = (
            2
            * CAPTURED
            * oracle.cancellation(theirs.second_with + carrier.output_factor, theirs.second_with)
        )
        old = subject.oracle.blocks[one.layer].post_mlp
        assert one.gain
        assert old is not None
        assert carrier.lifted is not None
        agree(one.gain.values, carrier.gain, 4 * CAPTURED, what)
        assert list(one.gain.lifted) == list(np.flatnonzero(carrier.lifted))
        assert set(ZERO_GAINS) <= set(one.gain.lifted)
        change = oracle.norm(carrier.gain - old.gain)
        agree(one.gain.norm, change, 1e-4, what)
        agree(one.gain.relative_norm, change / oracle.norm(old.gain), 1e-4, what)
    agree(one.w_out.output, carrier.output_factor, bound, what)
    agree(one.w_out.norm, size, bound, what)
    agree(one.w_out.relative_norm, relative, bound, what)


@EXTENTS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stream", STREAMS)
def test_updates_of_every_family_equal_the_oracles(
    variant: Subject, variant_name: str, stream: Stream, form: Form, extent: str
) -> None:
    """Norms, factors, Δh and its carrier equal the oracle's in every baseline, layer and position,
    and a parallel block has no ΔW in the sequential stream."""
    model, about = variant.model, VARIANTS[variant_name]
    for baseline in baselines_of(model, extent):
        question = variant.question(baseline)
        answer = asked(variant, baseline, stream, form)
        assert answer.form == form
        places = [(layer, j) for layer in range(model.n_layers) for j in (2, 0)]
        assert [(one.layer, one.position) for one in answer.updates] == places
        for one in answer.updates:
            theirs = (
                oracle.update(question, one.layer, one.position)
                if stream == "free"
                else oracle.sequential(question, one.position, form).updates[one.layer]
            )
            check_weights(variant, one, theirs)
            still = about.parallel and (stream == "sequential" or one.layer == 0)
            assert one.below_noise == still
            bound = CAPTURED * oracle.cancellation(theirs.h_with, theirs.h)
            agree_norms(one.resid_mid, theirs.resid_mid, bound, (one.layer, one.position))
            if form == "weights":
                assert one.bias is UNSET
                check_carrier(variant, one, theirs)
                continue
            assert one.w_out is one.gain is UNSET
            assert one.bias
            agree(one.bias.values, theirs.delta_h, bound, (one.layer, one.position))
            assert one.bias.parameter == (about.bias and about.bias.format(one.layer))
