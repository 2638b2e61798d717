"""The scheduler, driven by hand: which runs share a pack, which wait, and how each question
ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from service.engine import Model, Question, Run, Site, drive, load
from service.engine.scheduler import Ticket
from service.engine.walk import forward
from service.errors import DeadlineExceeded, NonFiniteActivation, OutOfMemory
from tests.engine.desk import READ, Desk, asking, run
from tests.engine.made import relative, with_nan


def alone(model: Model, one: Run) -> torch.Tensor:
    """The value that a run reads in a forward of its own."""
    (tensor,) = forward(model, [one])[0].values()
    return tensor


def test_two_questions_share_one_forward(tiny: Model) -> None:
    """Two questions are answered from one pack, each with its own rows."""
    desk, mine, yours = Desk(tiny), run(1, 2, 3), run(1, 2, 4)
    desk.admit("a", asking([mine]))
    desk.admit("b", asking([yours]))
    desk.turns()
    assert desk.forwards == [2]
    for name, one in (("a", mine), ("b", yours)):
        assert relative(desk.ended[name][0][READ], alone(tiny, one)) <= 5e-6
    assert relative(desk.ended["a"][0][READ], desk.ended["b"][0][READ]) > 1e-2


def test_without_batching_questions_have_separate_forwards(tiny: Model) -> None:
    """Without batching the runs of one question share a pack and those of two do not."""
    desk = Desk(tiny, batching=False)
    desk.admit("a", asking([run(1, 2), run(1, 3)]))
    desk.admit("b", asking([run(1, 2)]))
    desk.turns()
    assert desk.forwards == [2, 1]
    assert set(desk.ended) == {"a", "b"}


def test_runs_of_two_dtypes_do_not_share_a_forward(tiny: Model) -> None:
    """float64 runs have a forward of their own and return float64."""
    desk = Desk(tiny)
    desk.admit("a", asking([run(1, 2)]))
    desk.admit("b", asking([run(1, 2, dtype=torch.float64)]))
    desk.turns()
    assert desk.forwards == [1, 1]
    assert [desk.ended[name][0][READ].dtype for name in "ab"] == [torch.float32, torch.float64]


@pytest.mark.parametrize(
    ("budget", "forwards"), [(24, [3, 2]), (16, [2, 2, 1]), (8, [1] * 5), (3, [1] * 5)]
)
def test_row_budget_splits_a_long_question(tiny: Model, budget: int, forwards: list[int]) -> None:
    """Runs are packed in order within the row budget, and a longer run is packed alone."""
    runs = [run(*range(10 * i, 10 * i + 8)) for i in range(1, 6)]
    desk = Desk(tiny, row_budget=budget)
    desk.admit("a", asking(runs))
    desk.turns()
    assert desk.forwards == forwards
    for found, one in zip(desk.ended["a"], runs, strict=True):
        assert relative(found[READ], alone(tiny, one)) <= 5e-6


def test_question_ends_before_the_next_long_run_begins(tiny: Model) -> None:
    """If the long runs of several questions do not fit into one forward, each forward ends one
    question. Otherwise all questions would end in the last forward."""
    desk = Desk(tiny, row_budget=8)
    for name, first in (("a", 1), ("b", 11), ("c", 21)):
        desk.admit(name, asking([run(*range(first, first + 6)), run(first + 9)]))
    desk.turns()
    assert desk.forwards == [2, 2, 2]
    assert list(desk.ended) == ["a", "b", "c"]


def test_short_question_overtakes_a_long_one(tiny: Model) -> None:
    """A short question that came later ends before a long one, because questions take turns."""
    desk = Desk(tiny, row_budget=8)
    desk.admit("long", asking([run(*range(10 * i, 10 * i + 8)) for i in range(1, 7)]))
    desk.admit("short", asking([run(*range(100, 108))]))
    desk.admit("two", asking([run(*range(110, 118))], [run(*range(120, 128))]))
    desk.turns()
    assert list(desk.ended) == ["short", "two", "long"]
    assert desk.forwards == [1] * 9


def test_question_may_have_several_rounds_or_none(tiny: Model) -> None:
    """Questions with several rounds, an empty round or no round all end."""
    desk = Desk(tiny)
    desk.admit("rounds", asking([run(1, 2)], [], [run(3), run(4)]))
    desk.admit("nothing", asking())
    desk.admit("empty", asking([]))
    desk.turns()
    assert [len(desk.ended[name]) for name in ("rounds", "nothing", "empty")] == [3, 0, 0]


def watched(closed: list[str], runs: Sequence[Run]) -> Question[None]:
    """A question that records when it is closed."""
    try:
        yield list(runs)
    finally:
        closed.append("closed")


@pytest.mark.parametrize("seconds", [-1.0, 0.0])
def test_expired_question_never_starts(tiny: Model, seconds: float) -> None:
    """A question past its deadline raises `DeadlineExceeded` without a forward."""
    desk = Desk(tiny)
    desk.admit("late", asking([run(1, 2)]), seconds=seconds)
    desk.turns()
    assert isinstance(desk.ended["late"], DeadlineExceeded)
    assert desk.forwards == []


class Impatient(Ticket):
    """A ticket whose caller leaves once the walk has begun."""

    asked_for = 0

    @property
    def wanted(self) -> bool:
        """True for the turn and before the first block, false afterwards."""
        Impatient.asked_for += 1
        return Impatient.asked_for <= 2


@pytest.mark.parametrize("company", [False, True])
def test_walk_stops_before_the_next_block_once_all_callers_left(tiny: Model, company: bool) -> None:
    """A walk stops before its next block once every caller has left, and goes on while one
    remains."""
    Impatient.asked_for = 0
    deep = Site(2, "resid_post")
    closed: list[str] = []
    desk = Desk(tiny)
    desk.admit("gone", watched(closed, [run(1, 2, site=deep)]), kind=Impatient)
    if company:
        desk.admit("stays", asking([run(1, 3, site=deep)]))
    desk.scheduler.turn()
    assert desk.forwards == ([2] if company else [])
    desk.turns()
    assert isinstance(desk.ended["gone"], DeadlineExceeded)
    assert closed == ["closed"]
    if company:
        found = desk.ended["stays"][0][deep]
        assert relative(found, alone(tiny, run(1, 3, site=deep))) <= 5e-6


def test_cancelled_question_is_closed(tiny: Model) -> None:
    """A question cancelled between two turns is closed, and the others are answered."""
    closed: list[str] = []
    desk = Desk(tiny, row_budget=2)
    gone = desk.admit("gone", watched(closed, [run(1, 2), run(3, 4), run(5, 6)]))
    desk.admit("stays", asking([run(7, 8)]))
    desk.scheduler.turn()
    gone.cancelled = True
    desk.turns()
    assert closed == ["closed"]
    assert relative(desk.ended["stays"][0][READ], alone(tiny, run(7, 8))) <= 5e-6
    assert desk.forwards == [1, 1]


def test_error_in_a_shared_pack_ends_only_its_owner(
    tiny: Model, tiny_folder: Path, tmp_path: Path
) -> None:
    """A question that reads NaN is refused, and the others in its pack are answered correctly."""
    name = "transformer.h.2.mlp.c_fc.weight"
    desk = Desk(
        load(
            str(with_nan(tiny_folder, tmp_path / "nan", name)),
            revision=None,
            device="cpu",
            dtype="float32",
        )
    )
    desk.admit("fine", asking([run(1, 2, 3)]))
    desk.admit(
        "spoilt", asking([run(1, 2, site=Site(0, "mlp_in")), run(9, site=Site(2, "resid_post"))])
    )
    desk.admit("too", asking([run(1, 2, 4)], [run(5)]))
    desk.turns()
    assert isinstance(desk.ended["spoilt"], NonFiniteActivation)
    for name, one in (("fine", run(1, 2, 3)), ("too", run(1, 2, 4))):
        assert relative(desk.ended[name][0][READ], alone(tiny, one)) <= 5e-6
    assert len(desk.ended["too"]) == 2


def with_nan_token(tiny: Model, token: int) -> Model:
    """The tiny model with NaN in the embedding of one token."""
    embedding = tiny.ends.token_embedding.clone()
    embedding[token] = torch.nan
    return replace(tiny, ends=replace(tiny.ends, token_embedding=embedding))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_nan_of_another_run_is_not_cached(tiny: Model, together: bool, budget: int) -> None:
    """A run that reads NaN spoils neither the cached context of the other runs of its pack nor the
    trunk that they hand on, whether they are of the same question or of another."""
    desk, context = Desk(with_nan_token(tiny, 99), row_budget=7), range(1, 6)
    desk.scheduler.prefixes.budget = budget
    spoilt, fine = run(99), [run(*context, query) for query in (6, 7)]
    if together:
        desk.admit("spoilt", asking([spoilt, fine[0]]))
        desk.turns()
    else:
        desk.admit("fine", asking(fine))
        desk.admit("spoilt", asking([spoilt]))
        desk.turns()
        for one, read in zip(fine, desk.ended["fine"], strict=True):
            assert relative(read[READ], alone(tiny, one)) <= 5e-6
    assert isinstance(desk.ended["spoilt"], NonFiniteActivation)
    desk.admit("later", asking(fine))
    desk.turns()
    for one, read in zip(fine, desk.ended["later"], strict=True):
        assert relative(read[READ], alone(tiny, one)) <= 5e-6


def raising(error: Exception) -> Question[None]:
    """A question that fails in its own computation, after its runs."""
    yield [run(1)]
    raise error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("no"), ValueError),
        (MemoryError(), OutOfMemory),
        (torch.OutOfMemoryError("cuda"), OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), OutOfMemory),
        (RuntimeError("shapes"), RuntimeError),
    ],
)
def test_error_of_a_question_ends_only_that_question(
    tiny: Model, error: Exception, kind: type[Exception]
) -> None:
    """An error ends only the question that raised it; a lack of memory becomes `OutOfMemory`."""
    desk = Desk(tiny)
    desk.admit("bad", raising(error))
    desk.admit("good", asking([run(1)], [run(2)]))
    desk.turns()
    assert type(desk.ended["bad"]) is kind
    assert len(desk.ended["good"]) == 2


def test_abort_ends_every_question(tiny: Model) -> None:
    """`abort` ends every active question with the error and closes it."""
    closed: list[str] = []
    desk, error = Desk(tiny), RuntimeError("end")
    desk.admit("a", watched(closed, [run(1)]))
    desk.admit("b", asking([run(1)]))
    desk.scheduler.turn()
    desk.scheduler.abort(error)
    assert desk.ended == {"a": error, "b": error}
    assert closed == ["closed"]
    assert not desk.scheduler.active


def test_timings_separate_queue_forward_and_compute(tiny: Model) -> None:
    """Seconds of waiting, of forwards and of the question's own computation are separate."""

    def thinking() -> Iterator[Any]:
        time.sleep(0.03)
        yield [run(1, 2)]
        time.sleep(0.03)

    desk = Desk(tiny)
    question: Callable[[], Any] = thinking
    ticket = desk.admit("a", question())
    start = time.monotonic()
    desk.turns()
    whole = time.monotonic() - start
    assert ticket.timings.compute >= 0.06
    assert 0.0 < ticket.timings.forward <= whole - 0.06
    assert ticket.timings.queue < 0.03


def test_drive_returns_the_schedulers_answer(tiny: Model) -> None:
    """`drive` returns the scheduler's answer and passes errors on."""
    rounds = [run(1, 2), run(1, 3)], [run(4)]
    desk = Desk(tiny)
    desk.admit("a", asking(*rounds))
    desk.turns()
    for one, other in zip(drive(tiny, asking(*rounds)), desk.ended["a"], strict=True):
        assert torch.equal(one[READ], other[READ])
    with pytest.raises(ValueError, match="no"):
        drive(tiny, raising(ValueError("no")))
