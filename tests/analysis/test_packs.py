"""Analyses asked together answer as they do apart, from one pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from schemas.equivalence_checks import Check, LogitsCheck
from schemas.weight_updates import Include
from service.analysis.attributions import attributions
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.model_checks import model_checks
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.trajectories import trajectories
from service.analysis.weight_updates import weight_updates
from service.engine import Model, Question, drive, together
from tests.engine.test_question import packs

CONTEXT, QUERY = [3, 50, 9, 120, 77], [8, 30]


@pytest.fixture
def alone(tiny: Model) -> Pair:
    """The pair with the baseline `alone`."""
    return resolve_pair(tiny, CONTEXT, QUERY, "alone", "all")


@pytest.fixture
def anchored(tiny: Model) -> Pair:
    """The pair with the baseline `anchored`."""
    return resolve_pair(tiny, CONTEXT, QUERY, "anchored", "all")


def close(one: Any, other: Any) -> bool:
    """Whether two answers agree in every number up to rounding, and in everything else."""
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=2e-3, abs=2e-5)
    if isinstance(one, torch.Tensor):
        return bool(torch.allclose(one, other, rtol=1e-3, atol=1e-5))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if hasattr(one, "__dataclass_fields__"):
        return close(vars(one), vars(other))
    return bool(one == other)


def test_answers_from_one_pack_equal_those_of_separate_packs(
    tiny: Model, alone: Pair, anchored: Pair
) -> None:
    """Updates of both streams, trajectories and attributions have the same answers in one pack."""
    probe = resolve_pair(tiny, CONTEXT, QUERY[1:], "alone", "last")
    include: tuple[Include, ...] = ("factors", "bias", "split", "next_tokens")

    def questions() -> list[Question[Any]]:
        return [
            weight_updates(tiny, [alone], [0, 2], include, probes=[[probe]]),
            weight_updates(tiny, [anchored], [1], ["factors"], "sequential"),
            trajectories(tiny, anchored, [2], [(1, 3), (3, 6)]),
            attributions(tiny, anchored, [2], [(1, 3), (4, 6)]),
            weight_updates(tiny, [alone, alone], [1], ["split"]),
            weight_updates(tiny, [anchored], [1], ["next_tokens"]),
        ]

    apart = [drive(tiny, question) for question in questions()]
    sizes, answers = packs(tiny, together(*questions()))
    assert len(sizes) == 1
    for answer, lone in zip(answers, apart, strict=True):
        assert close(answer, lone)
    assert not close(answers[0], answers[1])


def test_checks_from_one_pack_equal_those_of_separate_packs(
    tiny: Model, alone: Pair, anchored: Pair
) -> None:
    """A model check and a block check asked together need two packs and have the same figures."""
    procedure = Procedure(tolerance=1.0)
    model = model_checks(tiny, anchored, [0, 2], procedure)
    block = block_checks(tiny, alone, [1], procedure)
    sizes, ((blocks, logits), of_block) = packs(tiny, together(model, block))
    assert len(sizes) == 2
    lone_blocks, lone_logits = drive(tiny, model_checks(tiny, anchored, [0, 2], procedure))
    lone_block = drive(tiny, block_checks(tiny, alone, [1], procedure))
    found: Sequence[Check | LogitsCheck] = [*blocks, *logits, *of_block]
    expected: Sequence[Check | LogitsCheck] = [*lone_blocks, *lone_logits, *lone_block]
    for one, other in zip(found, expected, strict=True):
        unpatched = other.unpatched_relative_error
        assert one.unpatched_relative_error == pytest.approx(unpatched, rel=1e-4)
        assert (one.relative_error or 0.0) <= 1e-5
        assert close(one.controls, other.controls)
