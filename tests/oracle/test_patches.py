"""The oracle's patches in every family: exact in both forms, in both streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.families import VARIANTS, ZERO_GAINS
from tests.oracle import (
    Decoder,
    Form,
    Question,
    ask,
    block_check,
    logits_check,
    projection_check,
    sequential,
    update,
)

CONTEXT = [0, 99, 200, 17, 5, 42, 9, 30, 250]
QUERY = [33, 71, 180]


@pytest.fixture(scope="module", params=VARIANTS)
def question(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> Question:
    """A context of nine tokens and a query of three, anchored, for one variant."""
    return ask(Decoder(folder_of(request.param)), CONTEXT, QUERY, "anchored", anchor=0)


@pytest.mark.parametrize("form", ["bias", "weights"])
def test_patch_is_exact_in_both_streams(question: Question, form: Form) -> None:
    """Each block's patched output is that with the context to 1e-11, and so are the logits."""
    for layer in range(question.model.n_layers):
        for stream in ("free", "sequential"):
            check = block_check(question, layer, stream=stream, form=form)
            assert check.relative_error < 1e-11 < 1e-2 < check.unpatched_relative_error
    assert logits_check(question, form=form).relative_error < 1e-11


def test_projection_is_exact(question: Question) -> None:
    """The first weights of each layer give the output with the context to 1e-12."""
    for layer in range(question.model.n_layers):
        assert projection_check(question, layer).relative_error < 1e-12


def test_parallel_blocks_have_no_sequential_weight_update(question: Question) -> None:
    """Where the MLP reads the block's input, ΔW is zero in the sequential stream, and only there;
    in layer 0 also in the free one, because rotary positions do not enter the stream."""
    runs = sequential(question)
    for layer, change in enumerate(runs.updates):
        parallel = question.model.parallel
        assert (change.relative_norm < 1e-12) == parallel
        assert (update(question, layer).relative_norm < 1e-12) == (parallel and layer == 0)


def test_zero_gains_are_lifted(question: Question) -> None:
    """After a norm whose gain is zero, the weights' form raises that gain to a finite number."""
    for layer in range(question.model.n_layers):
        carrier = update(question, layer).carrier
        if question.model.blocks[layer].post_mlp is None:
            assert carrier.gain is None
            continue
        assert carrier.gain is not None
        assert carrier.lifted is not None
        assert carrier.lifted[list(ZERO_GAINS)].all()
        assert np.isfinite(carrier.gain).all()
        assert np.count_nonzero(carrier.gain) == len(carrier.gain)
