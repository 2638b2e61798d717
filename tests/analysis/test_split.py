"""The split of an `alone` update into content and position, compared with the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.analysis.pairs import resolve_pair
from service.analysis.split import Part
from service.analysis.weight_updates import Include, Update, weight_updates
from service.engine import drive
from tests import oracle
from tests.analysis.subjects import CAPTURED, QUERY, Subject, agree, distance


def asked(subject: Subject) -> tuple[Update, ...]:
    """Updates of the subject's layers at all query positions."""
    model, pair = subject.model, subject.pair("alone")
    include: tuple[Include, ...] = ("factors", "split")
    return drive(model, weight_updates(model, pair, subject.layers, include)).updates


def dense(part: Part) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The outer product of a part's factors."""
    return np.outer(part.factors.input.double(), part.factors.output.double())


def test_split_parts_equal_the_oracles(subject: Subject) -> None:
    """Norm and factors of content and position equal the oracle's at every layer and position."""
    question = subject.question("alone")
    for one in asked(subject):
        theirs = oracle.split(question, one.layer, one.position)
        n = question.base[one.layer, "mlp_in"][one.position]
        matched = question.trace(question.keeping(()))[one.layer, "mlp_in"][one.position]
        full = question.full[one.layer, "mlp_in"][one.position]
        assert one.split is not None
        for part, truth, ends in (
            (one.split.content, theirs["content"], (matched, full)),
            (one.split.position, theirs["position"], (n, matched)),
        ):
            bound = CAPTURED * oracle.cancellation(*ends)
            agree(part.norm, truth.norm, bound)
            agree(part.factors.output, truth.output_factor, bound)
            agree(dense(part), truth.dense, bound + CAPTURED)


def test_split_parts_sum_to_the_update(subject: Subject) -> None:
    """ΔW = ΔW_content + ΔW_position on the whole's input factor, and neither part alone is
    close."""
    found = asked(subject)
    assert len(found) == len(subject.layers) * len(QUERY)
    for one in found:
        assert one.split is not None
        assert one.factors is not None
        content, position = one.split.content, one.split.position
        for part in (content, position):
            assert torch.equal(part.factors.input, one.factors.input)
        total = dense(Part(one.norm, one.factors))
        scale = (content.norm + position.norm) / one.norm
        assert distance(dense(content) + dense(position), total) <= CAPTURED * scale
        assert distance(dense(content), total) > 1e-2
        assert distance(dense(position), total) > 1e-2


def test_content_differs_from_the_matched_update(subject: Subject) -> None:
    """Content has the output factor of the `matched` update but another input factor."""
    model, pair = subject.model, subject.pair("matched")
    matched = drive(model, weight_updates(model, pair, subject.layers, ["factors"])).updates
    for one, other in zip(asked(subject), matched, strict=True):
        assert one.split is not None
        assert other.factors is not None
        agree(one.split.content.factors.output, other.factors.output, 1e-4)
        assert distance(one.split.content.factors.input, other.factors.input) > 1e-2


@pytest.mark.parametrize("subject", ["tiny"], indirect=True)
def test_split_is_absent_unless_requested(subject: Subject) -> None:
    """The split is absent unless requested, and does not change the update."""
    model, pair = subject.model, resolve_pair(subject.model, [3, 4], [5], "alone", "last")
    plain = drive(model, weight_updates(model, pair, [0, 2], [])).updates
    split = drive(model, weight_updates(model, pair, [0, 2], ["split"])).updates
    assert [one.split for one in plain] == [None, None]
    assert [one.norm for one in split] == pytest.approx([one.norm for one in plain], rel=1e-4)
