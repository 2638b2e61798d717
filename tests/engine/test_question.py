"""Questions: asked together, driven on one thread, and measured before they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import (
    Activations,
    AnswerSize,
    Follow,
    Model,
    Plan,
    Question,
    Run,
    Site,
    Work,
    distinct_rows,
    drive,
    plan,
    together,
)
from service.engine.question import SMALL_PACK
from service.engine.walk import forward
from service.errors import NonFiniteActivation

READ = {Site(0, "mlp_in"): [0]}


def counting(rounds: Sequence[int], log: list[int] | None = None) -> Question[list[int]]:
    """A question that yields these numbers of runs in turn and answers how many it received."""
    given = []
    for count in rounds:
        given.append(len((yield [Run((1 + count,), (0,), READ)] * count)))
        if log is not None:
            log.append(count)
    return given


def packs(model: Model, question: Question[Any]) -> tuple[list[int], Any]:
    """The number of runs of each forward of a question, and its answer."""
    sizes: list[int] = []

    def compute(model: Model, runs: Sequence[Run]) -> Sequence[Activations]:
        sizes.append(len(runs))
        return forward(model, runs)

    answer = drive(model, question, compute)
    return sizes, answer


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
def test_each_round_of_questions_asked_together_is_one_pack(
    tiny: Model, questions: list[list[int]], sizes: list[int]
) -> None:
    """The runs that all questions yield next share one pack, and each question receives as many
    activations as it yielded runs."""
    found, answers = packs(tiny, together(*(counting(rounds) for rounds in questions)))
    assert found == sizes
    assert answers == tuple(questions)


def reading(token: int) -> Question[torch.Tensor]:
    """A question that reads one token at two positions, in two rounds."""
    first = yield [Run((token,), (0,), READ)]
    second: Sequence[Activations] = yield [Run((token,), (1,), READ)]
    return torch.cat([first[0][Site(0, "mlp_in")], second[0][Site(0, "mlp_in")]])


def test_each_question_receives_its_own_activations(tiny: Model) -> None:
    """Questions asked together receive the activations of their own runs, in their order."""
    answers = drive(tiny, together(*(reading(token) for token in (5, 9, 5, 200))))
    for token, answer in zip((5, 9, 5, 200), answers, strict=True):
        torch.testing.assert_close(answer, drive(tiny, reading(token)), rtol=0, atol=1e-5)
    assert float((answers[0] - answers[1]).norm()) > 1.0


def test_error_of_one_question_ends_all_asked_together(tiny: Model) -> None:
    """An error that one question raises is raised when it occurs, and the others end with it."""

    def failing() -> Question[None]:
        yield [Run((4,), (0,), READ)]
        raise LookupError("planted")

    log: list[int] = []
    with pytest.raises(LookupError, match="planted"):
        drive(tiny, together(counting([1, 1, 1], log), failing()))
    assert log == [1]


def test_question_receives_the_error_of_its_forward(tiny: Model) -> None:
    """A question may handle the error of a forward and yield other runs."""
    spoilt = Run((4,), (0,), READ, reduce=_raise)

    def recovering() -> Question[int]:
        try:
            yield [spoilt]
        except NonFiniteActivation:
            return len((yield [Run((4,), (0,), READ)]))
        return 0

    assert drive(tiny, recovering()) == 1
    with pytest.raises(NonFiniteActivation, match="planted"):
        drive(tiny, _yielding([spoilt]))


def _raise(_values: torch.Tensor) -> torch.Tensor:
    raise NonFiniteActivation("planted")


def _yielding(runs: Sequence[Run]) -> Question[int]:
    """A question that yields these runs once and answers how many activations it received."""
    return len((yield runs))


@pytest.mark.parametrize("started", [False, True])
def test_drive_answers_a_plan_that_has_started_or_not(tiny: Model, started: bool) -> None:
    """`drive` computes the runs that a started plan holds, and starts a plan that holds none."""
    question = counting([2, 1])
    made = plan(tiny, question, AnswerSize()) if started else Plan(question)
    assert len(made.runs) == (2 if started else 0)
    assert drive(tiny, made) == [2, 1]


def run(*rows: tuple[int, int], patch: Follow | None = None, layer: int = 0) -> Run:
    """A run of these (id, position) rows that reads its first row."""
    tokens, positions = zip(*rows, strict=True)
    return Run(tokens, positions, {Site(layer, "mlp_in"): [0]}, patch=patch)


ids = st.integers(0, 2)
plain = st.lists(st.tuples(ids, ids), min_size=1, max_size=5).map(lambda rows: run(*rows))
following = st.builds(
    lambda one, source: Run(one.tokens, one.positions, one.reads, patch=Follow(source, 0, 0)),
    plain,
    plain,
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(plain | following, max_size=6))
def test_distinct_rows_counts_equal_beginnings_once(runs: list[Run]) -> None:
    """Plain runs and sources share equal beginnings. A patched run shares none of its rows."""
    shared = [one for one in runs if one.patch is None]
    shared += [one.patch.source for one in runs if isinstance(one.patch, Follow)]
    paths = [tuple(zip(one.tokens, one.positions, strict=True)) for one in shared]
    beginnings = {path[:stop] for path in paths for stop in range(1, len(path) + 1)}
    own = sum(len(one.tokens) for one in runs if one.patch is not None)
    assert distinct_rows(runs) == len(beginnings) + own


def test_equal_tokens_at_other_positions_are_other_rows() -> None:
    """A row is a token at a position: the same id at another position shares nothing."""
    assert distinct_rows([run((5, 0), (6, 1)), run((5, 0), (6, 1))]) == 2
    assert distinct_rows([run((5, 0), (6, 1)), run((5, 0), (6, 2))]) == 3
    assert distinct_rows([run((5, 0), (6, 1)), run((5, 1), (6, 2))]) == 4


def test_distinct_rows_counts_rows_with_large_ids_and_positions() -> None:
    """Ids and positions above 255 and 65,535 share their beginnings too."""
    runs = [run((70_000, 300), (i, 301), (256, 302)) for i in (255, 256, 65_535, 65_536, 256)]
    assert distinct_rows(runs) == 1 + 4 * 2


def test_work_is_rows_times_layers_times_bytes() -> None:
    """The size is rows × layers × bytes. The cost adds the rows that reading the weights takes."""
    work = Work(rows=100, layers=12, number_bytes=8)
    assert work.size == 100 * 12 * 8
    assert work.cost == (100 + SMALL_PACK) * 12 * 8


@pytest.mark.parametrize(
    ("dtype", "number_bytes"), [(None, 4), (torch.float32, 4), (torch.float64, 8)]
)
def test_plan_measures_rows_layers_and_dtype_of_the_first_runs(
    tiny: Model, dtype: torch.dtype | None, number_bytes: int
) -> None:
    """A plan counts the distinct rows with the later ones, the layers up to the deepest read, and
    the bytes of the runs' dtype or else the model's."""
    size = AnswerSize(entries=3)
    runs = [
        Run((4, 5), (0, 1), {Site(0, "mlp_in"): [1]}, dtype),
        Run((4, 6), (0, 1), {Site(1, "resid_post"): [1]}, dtype),
    ]
    made = plan(tiny, _yielding(runs), size, later_rows=10)
    assert made.work == Work(rows=3 + 10, layers=2, number_bytes=number_bytes)
    assert made.runs == runs
    assert made.size is size
