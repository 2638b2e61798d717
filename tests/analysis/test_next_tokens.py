"""Next tokens in both runs, compared with the oracle's distributions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.analysis.block_checks import Procedure
from service.analysis.model_checks import model_checks
from service.analysis.pairs import resolve_pair
from service.analysis.weight_updates import weight_updates
from service.engine import Model, drive, load
from service.errors import NonFiniteActivation
from tests import oracle
from tests.analysis.subjects import BASELINES, CAPTURED, QUERY, Subject
from tests.engine.made import with_nan


@pytest.mark.parametrize("baseline", BASELINES)
def test_next_tokens_equal_the_oracles(subject: Subject, baseline: str) -> None:
    """Texts and probabilities of the ten likeliest tokens in both runs, and KL, equal the oracle's
    at each position."""
    model, question = subject.model, subject.question(baseline)
    (answer,) = drive(model, weight_updates(model, [subject.pair(baseline)], [0], ["next_tokens"]))
    assert answer.next_tokens
    assert [one.position for one in answer.next_tokens] == list(range(len(QUERY)))
    for one in answer.next_tokens:
        runs = question.full.logits[one.position], question.base.logits[one.position]
        for found, logits in zip((one.with_context, one.baseline), runs, strict=True):
            noise = 2 * CAPTURED * float(abs(logits).max())
            shares = oracle.probabilities(logits)
            assert len(found) == len({token.id for token in found}) == 10
            for token, (_, probability) in zip(found, oracle.likeliest(logits), strict=True):
                assert token.text == model.tokenizer.token(token.id).text
                assert token.probability == pytest.approx(float(shares[token.id]), rel=noise)
                assert token.probability == pytest.approx(probability, rel=noise)
        bound = 2 * CAPTURED * oracle.cancellation(*runs)
        theirs = oracle.next_token_divergence(question, one.position)
        assert one.kl_divergence == pytest.approx(theirs, rel=bound)


def test_kl_differs_from_the_reverse_and_from_other_positions(subject: Subject) -> None:
    """KL(baseline ‖ with context), and KL at another position, are far from the figure, so the test
    above would see a mistake."""
    model, question = subject.model, subject.question("matched")
    (answer,) = drive(model, weight_updates(model, [subject.pair("matched")], [0], ["next_tokens"]))
    assert answer.next_tokens
    full, base = question.full.logits, question.base.logits
    for one in answer.next_tokens:
        j, other = one.position, (one.position + 1) % len(QUERY)
        wrong = [
            oracle.kl_divergence(base[j], full[j]),
            oracle.kl_divergence(full[other], base[other]),
            oracle.kl_divergence(full[j], full[other]),
        ]
        assert min(abs(np.array(wrong) - one.kl_divergence)) > 1e-3 * one.kl_divergence


def test_logits_with_nan_raise_an_error(tmp_path: Path, tiny: Model, tiny_folder: Path) -> None:
    """NaN in the logits raises an error instead of null probabilities. Updates without next tokens
    are still computed."""
    spoilt = with_nan(tiny_folder, tmp_path / "nan", "transformer.ln_f.weight")
    model = load(str(spoilt), revision=None, device="cpu", dtype="float32")
    pair = resolve_pair(model, [3, 4, 5], [6], "matched", "last")
    (found,) = drive(model, weight_updates(model, [pair], [2], []))[0].updates
    (expected,) = drive(tiny, weight_updates(tiny, [pair], [2], []))[0].updates
    assert found.norm == expected.norm
    with pytest.raises(NonFiniteActivation, match="logits"):
        drive(model, weight_updates(model, [pair], [2], ["next_tokens"]))
    with pytest.raises(NonFiniteActivation, match="logits"):
        drive(model, model_checks(model, pair, [2], Procedure()))
