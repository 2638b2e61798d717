"""Weight updates of pretrained models, compared with the float64 oracle's dense matrices.

A quantity that is formed from a difference agrees to the errors of both rows, relative to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.analysis.subjects import CAPTURED, agree
from tests.oracle import Form, Question, Update, sequential, update
from tests.oracle import norm as norm_of
from tests.oracle.checkpoint import Array
from tests.oracle.written import values
from tests.real.subject import BASELINES, PAIRS, Subject

pytestmark = pytest.mark.slow
EPSILON = float(np.finfo(np.float32).eps)


def asked(subject: Subject, pair: str, baseline: str, **body: Any) -> Any:
    """The updates of all layers with all factors, and the baseline that the answer names."""
    body |= {"baseline": BASELINES[baseline], "include": ["factors", "bias"], "encoding": "base64"}
    answer = subject.ask("weight-updates", pair, **body)
    assert answer["baseline"] == baseline
    assert [one["layer"] for one in answer["updates"]] == [*range(subject.oracle.n_layers)]
    return answer


def compare(
    subject: Subject, question: Question, one: Any, theirs: Update, form: Form, times: float = 1
) -> None:
    """Compare every figure of one layer's update with the oracle's, within `times` the bounds."""
    layer = one["layer"]
    bound = times * subject.difference_bound(question, layer, "mlp_in")
    bound_h = times * subject.difference_bound(question, layer, "resid_mid")
    base = times * subject.bounds(question.baseline_prompt, question.base)[layer, "mlp_in"][-1]
    full = subject.bounds(question.full_prompt, question.full)

    def same(actual: Any, expected: Any, allowed: float, what: str) -> None:
        agree(actual, expected, allowed, (layer, what))

    same(one["norm"], theirs.norm, bound, "norm")
    same(values(one["input"]), theirs.input_factor, base, "input")
    outputs = np.split(theirs.output_factor, len(one["weights"]))
    for weight, output in zip(one["weights"], outputs, strict=True):
        same(values(weight["output"]), output, bound, "output")
    weights = np.split(theirs.block.w_in, len(one["weights"]), axis=1)
    for weight, stored, output in zip(one["weights"], weights, outputs, strict=True):
        size = norm_of(output) / norm_of(theirs.n)
        same(weight["norm"], size, bound, "norm of a weight")
        same(weight["relative_norm"], size / norm_of(stored), bound, "relative norm")
        assert weight["spectral_share"] > weight["relative_norm"]
    for name, mine, allowed in (
        ("mlp_in", theirs.mlp_in, bound),
        ("resid_mid", theirs.resid_mid, bound_h),
    ):
        same(one[name]["norm_difference"], mine.norm_difference, allowed, name)
        same(one[name]["norm_with_context"], mine.norm_with_context, full[layer, name][-1], name)
        assert one[name]["cosine"] == pytest.approx(mine.cosine, abs=1e-5)
    assert one["below_noise"] == theirs.below_noise(EPSILON)
    assert one["rank"] == int(theirs.norm > 0)
    compare_bias(one, theirs, form, bound_h, full[layer, "mlp_act"][-1])


def compare_bias(one: Any, theirs: Update, form: Form, bound: float, act: float) -> None:
    """Compare what carries Δh, whose relative bound is `bound`; `act` is that of mlp_act."""
    layer = one["layer"]
    if form == "bias":
        assert one["bias"]["parameter"] is None
        agree(values(one["bias"]["values"]), theirs.delta_h, bound, (layer, "Δh"))
        return
    carrier = theirs.carrier
    agree(values(one["w_out"]["input"]), carrier.input_factor, act, (layer, "input of w_out"))
    if carrier.gain is None:
        output: Array = values(one["w_out"]["output"])
        agree(output, carrier.output_factor, bound, (layer, "output of w_out"))
        size = norm_of(carrier.output_factor) / norm_of(theirs.act_with)
        agree(one["w_out"]["norm"], size, bound + act, (layer, "norm of w_out"))
        assert "gain" not in one
        return
    # With another gain, w_out is determined: their product is the MLP's output that is wanted.
    block, gain = theirs.block, values(one["gain"]["values"])
    assert block.post_mlp is not None
    second = theirs.second_with + values(one["w_out"]["output"])
    reached = block.post_mlp(second, gain) - theirs.out_with
    agree(reached, theirs.delta_h, bound, (layer, "Δh by w_out and gain"))
    assert np.isfinite(gain).all()
    assert set(np.flatnonzero(block.post_mlp.gain == 0)) <= set(one["gain"]["lifted"])


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("baseline", BASELINES)
def test_free_updates_equal_the_oracles(subject: Subject, baseline: str, pair: str) -> None:
    """Every figure of every layer agrees with float64, in both forms."""
    question = subject.question(pair, baseline)
    for form in ("bias", "weights"):
        answer = asked(subject, pair, baseline, form=form)
        assert [t["id"] for t in answer["tokens"]["context"]] == [*question.context]
        for one in answer["updates"]:
            compare(subject, question, one, update(question, one["layer"]), form)


def test_sequential_updates_equal_the_oracles(subject: Subject) -> None:
    """On the stream that the patched layers below produce, they agree as well. The baseline then
    carries the rounding of the run with context too, so the bounds are twice as large."""
    question = subject.question("one token")
    body = {"form": "weights", "stream": "sequential"}
    answer = asked(subject, "one token", "anchored", **body)
    truth = sequential(question, -1, "weights").updates
    for one, theirs in zip(answer["updates"], truth, strict=True):
        compare(subject, question, one, theirs, "weights", 2)


def test_captured_bound_is_that_of_most_rows(subject: Subject) -> None:
    """Four rows of five are held to the bound of random models, not to a wider one of their own."""
    question = subject.question("antonyms")
    bounds = subject.bounds(question.full_prompt, question.full).values()
    assert np.mean(np.concatenate([*bounds]) == CAPTURED) > 0.8
