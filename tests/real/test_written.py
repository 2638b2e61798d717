"""The independent proof: an answer's updates, written into transformers' own modules."""

from __future__ import annotations

import pytest

from tests.oracle.written import proof
from tests.real.subject import PAIRS, Subject, with_kernels

pytestmark = pytest.mark.slow


KL = 5e-10
"""Largest KL divergence in nats. The full prompt of `capitals` itself has 5e-11 between the two
kernels."""


@pytest.mark.parametrize("pair", PAIRS)
def test_written_weights_give_the_logits_of_the_full_prompt(subject: Subject, pair: str) -> None:
    """transformers with the answer's weights, on the anchor and the query alone, has the logits of
    the full prompt: to 5e-6 where it multiplies with the service's kernels, and to 1e-5 as it is,
    because another order of summation moves the stream of each layer away from the answer's."""
    body = {"include": ["factors", "bias"], "encoding": "base64", "stream": "sequential"}
    forms = ["weights"]
    answer = subject.ask("weight-updates", pair, form="bias", **body)
    if answer["updates"][0]["bias"]["parameter"] is not None:
        forms.append("bias")
    for form in forms:
        answer = subject.ask("weight-updates", pair, form=form, **body)
        for prepare, bound in ((with_kernels, 5e-6), (None, 1e-5)):
            found = proof(subject.folder, answer, prepare)
            print(f"{pair}, {form}, {bound:.0e}: {found}")
            assert found.relative_error <= bound
            assert found.kl_divergence <= KL
            assert found.same_top_token
            assert found.unwritten_relative_error > 0.1
            assert found.unwritten_kl_divergence > 0.1
