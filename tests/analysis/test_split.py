"""The split of an `alone` update into content and position, compared with the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.common import UNSET
from schemas.weight_updates import Include, Part, Update
from service.analysis.pairs import resolve_pair
from service.analysis.weight_updates import weight_updates
from service.engine import drive
from tests import oracle
from tests.analysis.subjects import CAPTURED, QUERY, Subject, agree, distance, factors_of


def asked(subject: Subject) -> Sequence[Update[Tensor]]:
    """Updates of three layers at all query positions, with factors and split."""
    model, pair = subject.model, subject.pair("alone")
    include: tuple[Include, ...] = ("factors", "split")
    return drive(model, weight_updates(model, [pair], subject.layers, include))[0].updates


def dense(part: Part[Tensor]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The outer product of a part's factors."""
    return np.outer(part.input.double(), torch.cat(list(part.outputs)).double())


def test_both_parts_equal_the_oracles(subject: Subject) -> None:
    """Norm and factors of content and position equal the oracle's at every layer and position."""
    question = subject.question("alone")
    for one in asked(subject):
        theirs = oracle.split(question, one.layer, one.position)
        n = question.base[one.layer, "mlp_in"][one.position]
        matched = question.trace(question.keeping(()))[one.layer, "mlp_in"][one.position]
        full = question.full[one.layer, "mlp_in"][one.position]
        assert one.split
        for part, truth, ends in (
            (one.split.content, theirs["content"], (matched, full)),
            (one.split.position, theirs["position"], (n, matched)),
        ):
            bound = CAPTURED * oracle.cancellation(*ends)
            agree(part.norm, truth.norm, bound)
            (output,) = part.outputs
            agree(output, truth.output_factor, bound)
            agree(dense(part), truth.dense, bound + CAPTURED)


def test_parts_add_up_to_the_update(subject: Subject) -> None:
    """ΔW = ΔW_content + ΔW_position with the input factor of ΔW. Either part alone is far off."""
    found = asked(subject)
    assert len(found) == len(subject.layers) * len(QUERY)
    for one in found:
        assert one.split
        a, b = factors_of(one)
        content, position = one.split.content, one.split.position
        for part in (content, position):
            assert torch.equal(part.input, a)
        total = dense(Part(one.norm, a, [b]))
        scale = (content.norm + position.norm) / one.norm
        assert distance(dense(content) + dense(position), total) <= CAPTURED * scale
        assert distance(dense(content), total) > 1e-2
        assert distance(dense(position), total) > 1e-2


def test_content_differs_from_the_matched_update(subject: Subject) -> None:
    """Content has the base of the query alone. The matched update has another base, so its input
    factor differs and its output factor is the same."""
    model, pair = subject.model, subject.pair("matched")
    matched = drive(model, weight_updates(model, [pair], subject.layers, ["factors"]))[0].updates
    for one, other in zip(asked(subject), matched, strict=True):
        assert one.split
        a, b = factors_of(other)
        agree(one.split.content.outputs[0], b, 1e-4)
        assert distance(one.split.content.input, a) > 1e-2


@pytest.mark.parametrize("subject", ["tiny"], indirect=True)
def test_split_is_absent_unless_requested(subject: Subject) -> None:
    """`split` is absent without the include, and requesting it does not change the update."""
    model, pair = subject.model, resolve_pair(subject.model, [3, 4], [5], "alone", "last")
    plain = drive(model, weight_updates(model, [pair], [0, 2], []))[0].updates
    split = drive(model, weight_updates(model, [pair], [0, 2], ["split"]))[0].updates
    assert [one.split for one in plain] == [UNSET, UNSET]
    assert [one.norm for one in split] == pytest.approx([one.norm for one in plain], rel=1e-4)
