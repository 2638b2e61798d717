"""Several questions joined into one: their answers are those of separate questions, in one pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from service.analysis.together import together

from service.analysis.attributions import attributions
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.model_checks import LogitsCheck, model_checks
from service.analysis.next_tokens import next_tokens
from service.analysis.pairs import resolve_pair
from service.analysis.split import splits
from service.analysis.trajectories import trajectories
from service.analysis.verdicts import Check
from service.analysis.weight_updates import Include, weight_updates
from service.engine import Activations, Model, Question, Run, Site, drive
from service.engine.walk import forward

READ = {Site(0, "mlp_in"): [0]}


def counting(rounds: Sequence[int], log: list[int] | None = None) -> Question[list[int]]:
    """A question of several rounds of runs that returns the number of activations of each round."""
    given = []
    for count in rounds:
        given.append(len((yield [Run((1 + count,), (0,), READ)] * count)))
        if log is not None:
            log.append(count)
    return given


def packs(model: Model, question: Question[Any]) -> tuple[list[int], Any]:
    """The number of runs in each forward of a question, and its answer."""
    sizes: list[int] = []
    received: Sequence[Activations] | None = None
    try:
        while True:
            runs = next(question) if received is None else question.send(received)
            sizes += [len(runs)] if runs else []
            received = forward(model, runs) if runs else ()
    except StopIteration as stop:
        return sizes, stop.value


@pytest.mark.parametrize(
    ("questions", "sizes"),
    [
        ([[2]], [2]),
        ([[2], [3]], [5]),
        ([[1, 2], [3]], [4, 2]),
        ([[], [3, 1]], [3, 1]),
        ([[1, 1, 1], [2, 2], []], [3, 3, 1]),
        ([[], []], []),
        ([], []),
    ],
)
def test_each_round_is_one_pack(tiny: Model, questions: list[list[int]], sizes: list[int]) -> None:
    """The next runs of all questions form one pack, and each question gets as many activations as
    it asked for."""
    found, answers = packs(tiny, together(*(counting(rounds) for rounds in questions)))
    assert found == sizes
    assert answers == tuple(questions)


def reading(token: int) -> Question[torch.Tensor]:
    """A question that reads one token by itself, in two rounds."""
    first = yield [Run((token,), (0,), READ)]
    second: Sequence[Activations] = yield [Run((token,), (1,), READ)]
    return torch.cat([first[0][Site(0, "mlp_in")], second[0][Site(0, "mlp_in")]])


def test_each_question_gets_its_own_rows(tiny: Model) -> None:
    """Each question gets its own rows, in the order of the questions."""
    answers = drive(tiny, together(*(reading(token) for token in (5, 9, 5, 200))))
    for token, answer in zip((5, 9, 5, 200), answers, strict=True):
        torch.testing.assert_close(answer, drive(tiny, reading(token)), rtol=0, atol=1e-5)
    assert float((answers[0] - answers[1]).norm()) > 1.0


def close(one: Any, other: Any) -> bool:
    """Whether two answers are equal up to rounding."""
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


def test_joined_answers_equal_separate_answers(tiny: Model) -> None:
    """Updates, checks, trajectories and attributions in one pack have the answers of separate
    questions."""
    alone = resolve_pair(tiny, [3, 50, 9, 120, 77], [8, 30], "alone", "all")
    pair = resolve_pair(tiny, [3, 50, 9, 120, 77], [8, 30], "anchored", "all")
    probe = resolve_pair(tiny, [3, 50, 9, 120, 77], [30], "alone", "last")
    procedure = Procedure(tolerance=1.0)
    include: tuple[Include, ...] = ("factors", "bias", "split", "next_tokens")

    def questions() -> list[Question[Any]]:
        return [
            weight_updates(tiny, alone, [0, 2], include, probes=[probe]),
            weight_updates(tiny, pair, [1], ["factors"], "sequential"),
            trajectories(tiny, pair, [2], [(1, 3), (3, 6)]),
            attributions(tiny, pair, [2], [(1, 3), (4, 6)]),
            splits(tiny, alone, [1], True),
            next_tokens(tiny, pair, True),
        ]

    apart = [drive(tiny, question) for question in questions()]
    sizes, answers = packs(tiny, together(*questions()))
    assert len(sizes) == 1
    for answer, lone in zip(answers, apart, strict=True):
        assert close(answer, lone)
    assert not close(answers[0], answers[1])
    checks = packs(
        tiny,
        together(
            model_checks(tiny, pair, [0, 2], procedure),
            block_checks(tiny, alone, [1], procedure),
        ),
    )
    assert len(checks[0]) == 2
    lone_model = drive(tiny, model_checks(tiny, pair, [0, 2], procedure))
    found = [*checks[1][0][0], *checks[1][0][1]]
    others: list[Check | LogitsCheck] = [*lone_model[0], *lone_model[1]]
    for one, other in zip(found, others, strict=True):
        assert one.unpatched_relative_error == pytest.approx(
            other.unpatched_relative_error, rel=1e-4
        )
        assert (one.relative_error or 0.0) <= 1e-5
        assert close(one.controls, other.controls)


def test_error_of_one_question_is_raised(tiny: Model) -> None:
    """An error of one question is raised by the joined one, after the questions before it."""

    def failing() -> Question[None]:
        yield [Run((4,), (0,), READ)]
        raise LookupError("planted")

    log: list[int] = []
    with pytest.raises(LookupError, match="planted"):
        drive(tiny, together(counting([1, 1, 1], log), failing()))
    assert log == [1]
