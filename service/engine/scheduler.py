"""The scheduler: how the questions of several requests share the model, without threads.

A question is a generator that yields runs, receives their activations and returns its answer. Every
turn advances the questions that have none outstanding, lays outstanding runs into one pack of at
most `row_budget` rows, a run of each question in turn, and hands the activations out. What does not
fit waits for the next turn, and who went first goes last; a question with much to compute of its
own yields no runs in between. So long work is cut into slices and short work passes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile, zip_longest
from typing import Any, TypeAlias, TypeVar

import torch

from service.engine.model import Model
from service.engine.pack import fill
from service.engine.prefixes import Prefixes, nothing_known
from service.engine.run import Activations, Run
from service.engine.walk import forward
from service.engine.work import Work
from service.errors import DeadlineExceeded, OutOfMemory, ServiceError

OWN_SECONDS = 0.02
"""How long questions may compute on their own before the next forward, a step of each at least."""
Answer = TypeVar("Answer")
Question: TypeAlias = Generator[Sequence[Run], Sequence[Activations], Answer]


@dataclass
class Timings:
    """Where a question's time and rows went.

    Args:
        queue: Seconds of waiting for its turn.
        forward: Seconds in forwards, shared ones in full.
        compute: Seconds in its own computation.
        rows: Rows that its runs have, before any is shared.
        known_rows: How many of them were known from earlier forwards.
    """

    queue: float = 0.0
    forward: float = 0.0
    compute: float = 0.0
    rows: int = 0
    known_rows: int = 0


@dataclass(eq=False)
class Ticket:
    """A question on its way.

    Args:
        question: The generator.
        deadline: When it expires, on the monotonic clock.
        settle: Called once, with the answer or with the error.
        work: What it will take.
    """

    question: Question[Any]
    deadline: float
    settle: Callable[[Any, BaseException | None], None]
    work: Work = field(default_factory=Work)
    asked: float = field(default_factory=time.monotonic)
    timings: Timings = field(default_factory=Timings)
    outstanding: list[Run] = field(default_factory=list)
    received: list[Activations] = field(default_factory=list)
    cancelled: bool = False
    begun: bool = False
    answered: bool = False

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for the answer."""
        return not self.cancelled and time.monotonic() < self.deadline


class _Unwanted(Exception):
    """Nobody waits for this pack any more."""


class Scheduler:
    """The questions under way on one model; to be driven by one thread.

    Args:
        model: The resident model.
        row_budget: Rows of a pack; a single longer run goes alone.
        batching: Whether runs of different questions may share a pack.
        prefixes: Known beginnings.
        observe: Called after each forward with its seconds and its runs.
        beats: Called before each block and each step of a question, as a sign of life.
    """

    def __init__(
        self,
        model: Model,
        *,
        row_budget: int,
        batching: bool,
        prefixes: Prefixes | None = None,
        observe: Callable[[float, int], None] = lambda _seconds, _runs: None,
        beats: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._row_budget = row_budget
        self._batching = batching
        self._prefixes = prefixes
        self._find = nothing_known if prefixes is None else prefixes.find
        self._observe = observe
        self._beats = beats
        self.active: deque[Ticket] = deque()

    def admit(self, ticket: Ticket) -> None:
        """Take a question in; its waiting is over."""
        ticket.timings.queue = time.monotonic() - ticket.asked
        self.active.append(ticket)

    def turn(self) -> None:
        """Advance what can be advanced, then run one pack."""
        give_way = time.monotonic() + OWN_SECONDS
        for ticket in tuple(self.active):
            if not ticket.wanted:
                self._end(ticket, None, expiry(ticket))
            while ticket in self.active and not ticket.outstanding:
                self._advance(ticket)
                if time.monotonic() > give_way:
                    break
        sharing = self._sharing()
        if sharing:
            first = self.active[0]
            self._run(sharing)
            if self.active and self.active[0] is first:
                self.active.rotate(-1)

    def abort(self, error: BaseException) -> None:
        """End every question with an error."""
        for ticket in tuple(self.active):
            self._end(ticket, None, error)

    def _advance(self, ticket: Ticket) -> None:
        """One step of the generator: to its next runs, to none, its answer or its error."""
        self._beats()
        received, ticket.received = ticket.received, []
        start = time.monotonic()
        failure: Exception | None = None
        answer: Any = None
        ended = False
        try:
            if ticket.begun:
                ticket.outstanding = list(ticket.question.send(received))
            else:
                ticket.begun = True
                ticket.outstanding = list(next(ticket.question))
        except StopIteration as stop:
            ended, answer = True, stop.value
        except Exception as error:
            ended, failure = True, _named(error)
        ticket.timings.compute += time.monotonic() - start
        if ended:
            self._end(ticket, answer, failure)

    def _sharing(self) -> list[tuple[Ticket, Run]]:
        """The runs of the next pack, with their owners: of one dtype, within the budget."""
        waiting = [ticket for ticket in self.active if ticket.outstanding]
        if not waiting:
            return []
        dtype = self._dtype(waiting[0].outstanding[0])
        columns = [
            [
                (ticket, run)
                for run in takewhile(lambda r: self._dtype(r) == dtype, ticket.outstanding)
            ]
            for ticket in (waiting if self._batching else waiting[:1])
        ]
        rounds = zip_longest(*columns)
        alike = [one for round_ in rounds for one in round_ if one is not None]
        return alike[: fill([run for _, run in alike], self._row_budget, self._find)]

    def _dtype(self, run: Run) -> torch.dtype:
        return run.dtype or self._model.dtype

    def _run(self, sharing: list[tuple[Ticket, Run]]) -> None:
        owners = list(dict.fromkeys(ticket for ticket, _ in sharing))

        def proceed() -> None:
            self._beats()
            if not any(owner.wanted for owner in owners):
                raise _Unwanted

        known = [sum(part.rows for part in self._find(run)) for _, run in sharing]
        start = time.monotonic()
        failure: Exception | None = None
        try:
            activations = forward(self._model, [run for _, run in sharing], proceed, self._prefixes)
        except _Unwanted:
            return
        except Exception as error:
            failure = _named(error)
        if failure is not None:
            # Only here is what the failed pack held free again, so that the others fit.
            if len(owners) == 1:
                self._end(owners[0], None, failure)
            else:
                for owner in owners:
                    self._run([(ticket, run) for ticket, run in sharing if ticket is owner])
            return
        seconds = time.monotonic() - start
        self._observe(seconds, len(sharing))
        for owner in owners:
            owner.timings.forward += seconds
        for (ticket, run), rows, read in zip(sharing, known, activations, strict=True):
            ticket.timings.rows += len(run.tokens)
            ticket.timings.known_rows += rows
            ticket.received.append(read)
        for owner in owners:
            count = sum(ticket is owner for ticket, _ in sharing)
            owner.outstanding = owner.outstanding[count:]

    def _end(self, ticket: Ticket, answer: Any, error: BaseException | None) -> None:
        self.active.remove(ticket)
        ticket.question.close()
        ticket.answered = error is None
        ticket.settle(answer, error)


def drive(model: Model, question: Question[Answer]) -> Answer:
    """The answer to one question, computed here and now; it may handle a forward's error."""
    try:
        runs = next(question)
        while True:
            try:
                received = forward(model, runs) if runs else ()
            except ServiceError as error:
                runs = question.throw(error)
            else:
                runs = question.send(received)
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer


def expiry(ticket: Ticket) -> BaseException:
    """Why a question that is no longer wanted ends."""
    seconds = ticket.deadline - ticket.asked
    return DeadlineExceeded(f"waiting and computing took longer than {seconds:g} s")


def _named(error: Exception) -> Exception:
    """The error itself, or its name where it is a lack of memory."""
    if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
        # The device is lost to this process: nothing that follows could be trusted.
        raise error
    lacking = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
    if lacking:
        return OutOfMemory("there was not enough memory for this question")
    # A traceback's frames would keep what they computed alive.
    return error.with_traceback(None) if isinstance(error, ServiceError) else error
