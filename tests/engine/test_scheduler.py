"""The scheduler, driven by hand: who shares a pack, who waits, and who ends how."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
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
    """What a run reads by itself."""
    (tensor,) = forward(model, [one])[0].values()
    return tensor


def test_two_questions_share_one_forward(tiny: Model) -> None:
    """Both are answered from one pack, each with its own rows, as if it had been alone."""
    desk, mine, yours = Desk(tiny), run(1, 2, 3), run(1, 2, 4)
    desk.admit("a", asking([mine]))
    desk.admit("b", asking([yours]))
    desk.turns()
    assert desk.forwards == [2]
    for name, one in (("a", mine), ("b", yours)):
        assert relative(desk.ended[name][0][READ], alone(tiny, one)) <= 5e-6
    assert relative(desk.ended["a"][0][READ], desk.ended["b"][0][READ]) > 1e-2


def test_without_batching_each_question_has_its_forwards(tiny: Model) -> None:
    """The runs of one question still share a pack, those of two questions do not."""
    desk = Desk(tiny, batching=False)
    desk.admit("a", asking([run(1, 2), run(1, 3)]))
    desk.admit("b", asking([run(1, 2)]))
    desk.turns()
    assert desk.forwards == [2, 1]
    assert set(desk.ended) == {"a", "b"}


def test_runs_of_two_dtypes_do_not_share(tiny: Model) -> None:
    """float64 runs go in a forward of their own and come back in float64."""
    desk = Desk(tiny)
    desk.admit("a", asking([run(1, 2)]))
    desk.admit("b", asking([run(1, 2, dtype=torch.float64)]))
    desk.turns()
    assert desk.forwards == [1, 1]
    assert [desk.ended[name][0][READ].dtype for name in "ab"] == [torch.float32, torch.float64]


@pytest.mark.parametrize(
    ("budget", "forwards"), [(24, [3, 2]), (16, [2, 2, 1]), (8, [1] * 5), (3, [1] * 5)]
)
def test_a_long_question_is_cut_by_the_row_budget(
    tiny: Model, budget: int, forwards: list[int]
) -> None:
    """Five runs of eight rows go in packs of at most the budget, in order; a longer run alone."""
    runs = [run(*range(10 * i, 10 * i + 8)) for i in range(1, 6)]
    desk = Desk(tiny, row_budget=budget)
    desk.admit("a", asking(runs))
    desk.turns()
    assert desk.forwards == forwards
    for found, one in zip(desk.ended["a"], runs, strict=True):
        assert relative(found[READ], alone(tiny, one)) <= 5e-6


def test_short_work_passes_between_the_slices_of_long_work(tiny: Model) -> None:
    """Who went first goes last: a short question that came later ends first."""
    desk = Desk(tiny, row_budget=8)
    desk.admit("long", asking([run(*range(10 * i, 10 * i + 8)) for i in range(1, 7)]))
    desk.admit("short", asking([run(*range(100, 108))]))
    desk.admit("two", asking([run(*range(110, 118))], [run(*range(120, 128))]))
    desk.turns()
    assert list(desk.ended) == ["short", "two", "long"]
    assert desk.forwards == [1] * 9


def test_a_question_may_ask_in_rounds_or_nothing(tiny: Model) -> None:
    """Several rounds, an empty one among them, and a question without any run all end."""
    desk = Desk(tiny)
    desk.admit("rounds", asking([run(1, 2)], [], [run(3), run(4)]))
    desk.admit("nothing", asking())
    desk.admit("empty", asking([]))
    desk.turns()
    assert [len(desk.ended[name]) for name in ("rounds", "nothing", "empty")] == [3, 0, 0]


def watched(closed: list[str], runs: Sequence[Run]) -> Question[None]:
    """Notes when it is closed."""
    try:
        yield list(runs)
    finally:
        closed.append("closed")


@pytest.mark.parametrize("seconds", [-1.0, 0.0])
def test_an_expired_question_is_never_begun(tiny: Model, seconds: float) -> None:
    """Past its deadline it ends with that error, and no forward is run for it."""
    desk = Desk(tiny)
    desk.admit("late", asking([run(1, 2)]), seconds=seconds)
    desk.turns()
    assert isinstance(desk.ended["late"], DeadlineExceeded)
    assert desk.forwards == []


class Impatient(Ticket):
    """A ticket whose caller goes away when it has been asked for the second time in a walk."""

    asked_for = 0

    @property
    def wanted(self) -> bool:
        """True for the turn and before the first block, then no more."""
        Impatient.asked_for += 1
        return Impatient.asked_for <= 2


@pytest.mark.parametrize("company", [False, True])
def test_a_caller_who_leaves_stops_the_walk_before_the_next_block(
    tiny: Model, company: bool
) -> None:
    """Of three blocks one is computed; a pack that somebody else waits for goes on."""
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


def test_a_cancelled_question_is_closed_and_the_others_go_on(tiny: Model) -> None:
    """Between two turns: its generator ends, the rest is answered."""
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


def test_an_error_of_a_shared_pack_ends_only_its_owner(
    tiny: Model, tiny_folder: Path, tmp_path: Path
) -> None:
    """The one that reads NaN is refused, those it shared the pack with are answered right."""
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


def raising(error: Exception) -> Question[None]:
    """Fails in its own computation, after its runs."""
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
def test_an_error_of_a_question_is_its_own(
    tiny: Model, error: Exception, kind: type[Exception]
) -> None:
    """It ends that question, a lack of memory by its name, and leaves the others alone."""
    desk = Desk(tiny)
    desk.admit("bad", raising(error))
    desk.admit("good", asking([run(1)], [run(2)]))
    desk.turns()
    assert type(desk.ended["bad"]) is kind
    assert len(desk.ended["good"]) == 2


def test_abort_ends_all(tiny: Model) -> None:
    """Every question under way ends with the error and is closed."""
    closed: list[str] = []
    desk, error = Desk(tiny), RuntimeError("end")
    desk.admit("a", watched(closed, [run(1)]))
    desk.admit("b", asking([run(1)]))
    desk.scheduler.turn()
    desk.scheduler.abort(error)
    assert desk.ended == {"a": error, "b": error}
    assert closed == ["closed"]
    assert not desk.scheduler.active


def test_timings_add_up(tiny: Model) -> None:
    """Waiting, forwards and own computation are told apart, in seconds."""

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


def test_drive_answers_like_the_scheduler(tiny: Model) -> None:
    """The loop without a scheduler gives the same answer and passes an error on."""
    rounds = [run(1, 2), run(1, 3)], [run(4)]
    desk = Desk(tiny)
    desk.admit("a", asking(*rounds))
    desk.turns()
    for one, other in zip(drive(tiny, asking(*rounds)), desk.ended["a"], strict=True):
        assert torch.equal(one[READ], other[READ])
    with pytest.raises(ValueError, match="no"):
        drive(tiny, raising(ValueError("no")))
