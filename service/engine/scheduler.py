"""The scheduler: questions of several requests share one model on one thread.

Each turn first advances the questions that wait for no runs. Then it packs outstanding runs, one of
each question in turn, into a forward of at most `row_budget` rows, and distributes the activations.
Runs that do not fit wait for the next turn, in which the question that came first comes last. A
question with much computation of its own yields without runs in between. Long questions are
therefore cut into slices, and short ones do not wait for them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import GEN_CREATED, getgeneratorstate
from itertools import takewhile
from typing import Any

import torch

from service.engine.graphs import Graphs
from service.engine.model import Model
from service.engine.pack import Filling
from service.engine.prefixes import Prefixes
from service.engine.question import Plan
from service.engine.readback import Condition, require
from service.engine.run import Activations, History, Run
from service.engine.segments import Placed
from service.engine.walk import kind_of, walk
from service.errors import DeadlineExceeded, OutOfMemory, ServiceError

OWN_SECONDS = 0.02
"""Seconds for the questions' own computation between two forwards; each takes a step at least."""
NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What the errors of a CPU's allocator and of cuBLAS say when memory lacks."""


@dataclass
class Timings:
    """The time and the cached rows of a question.

    Args:
        queue: Seconds in the queue.
        forward: Seconds in forwards. A shared forward counts in full.
        compute: Seconds in the question's own computation.
        cached_rows: Number of its rows that were cached when it asked for them.
        began: Monotonic time in seconds at which `queue`, `forward` and `compute` first began.
    """

    queue: float = 0.0
    forward: float = 0.0
    compute: float = 0.0
    cached_rows: int = 0
    began: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Ticket:
    """A question in the queue or under way.

    Args:
        plan: The question and its work.
        deadline: Time of expiry on the monotonic clock.
        settle: Called once, with the answer or with the error.
        seconds: Compute seconds so far. A shared forward counts by equal parts.
    """

    plan: Plan[Any]
    deadline: float
    settle: Callable[[Any, BaseException | None], None]
    asked: float = field(default_factory=time.monotonic)
    timings: Timings = field(default_factory=Timings)
    seconds: float = 0.0
    outstanding: deque[Placed] = field(default_factory=deque)
    received: list[Activations] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)
    histories: set[History] = field(default_factory=set)
    cancelled: bool = False
    answered: bool = False

    @property
    def wanted(self) -> bool:
        """Whether the client still waits and the deadline has not passed."""
        return not self.cancelled and time.monotonic() < self.deadline

    def leave_queue(self) -> None:
        """Record when the question began to wait, and for how long."""
        self.timings.began["queue"] = self.asked
        self.timings.queue = time.monotonic() - self.asked


class _Unwanted(Exception):
    """No client waits for this pack any more."""


@dataclass(kw_only=True, eq=False)
class Scheduler:
    """The questions under way on one model, driven by one thread.

    Args:
        model: The resident model.
        row_budget: Maximum rows of a pack. A single longer run is a pack of its own.
        batching: Whether runs of different questions may share a pack.
        prefixes: The tree of rows, with the prefix cache.
        graphs: Replays blocks of static shapes; None: shapes are exact.
        observe: Called after each forward with its seconds and its number of runs.
        beats: Called before each block and each step of a question, as a heartbeat.
    """

    model: Model = field(kw_only=False)
    row_budget: int
    batching: bool
    prefixes: Prefixes = field(default_factory=Prefixes)
    graphs: Graphs | None = None
    observe: Callable[[float, int], None] = lambda _seconds, _runs: None
    beats: Callable[[], None] = lambda: None
    active: deque[Ticket] = field(default_factory=deque)

    def admit(self, ticket: Ticket) -> None:
        """Take a question out of the queue."""
        ticket.leave_queue()
        self.active.append(ticket)
        try:
            self._receive_runs(ticket, ticket.plan.runs)
        except ValueError as error:
            self._end(ticket, None, error)

    def turn(self) -> None:
        """Advance the questions that wait for no runs, then run one pack."""
        give_way = time.monotonic() + OWN_SECONDS
        for ticket in tuple(self.active):
            if not ticket.wanted:
                self._end(ticket, None, expiry(ticket))
            while ticket in self.active and not ticket.outstanding:
                self._advance(ticket)
                if time.monotonic() > give_way:
                    break
        if sharing := self._sharing():
            first = self.active[0]
            self._run(sharing)
            if self.active and self.active[0] is first:
                self.active.rotate(-1)

    def abort(self, error: BaseException) -> None:
        """End every question with an error."""
        for ticket in tuple(self.active):
            self._end(ticket, None, error)

    def _advance(self, ticket: Ticket) -> None:
        """Advance a question by one step: to its next runs, its answer, or its error."""
        self.beats()
        received, ticket.received = ticket.received, []
        question = ticket.plan.question
        start = time.monotonic()
        end: tuple[Any, Exception | None] | None = None
        try:
            created = getgeneratorstate(question) == GEN_CREATED
            self._receive_runs(ticket, next(question) if created else question.send(received))
        except StopIteration as stop:
            end = stop.value, None
        except Exception as error:
            end = None, _named(error)
        try:
            if end is not None and end[1] is None:
                # The question may have read back nothing, so its conditions are tested here.
                require(ticket.conditions)
        except Exception as error:
            end = None, _named(error)
        seconds = time.monotonic() - start
        ticket.timings.began.setdefault("compute", start)
        ticket.timings.compute += seconds
        ticket.seconds += seconds
        if end is not None:
            self._end(ticket, *end)

    def _receive_runs(self, ticket: Ticket, runs: Sequence[Run]) -> None:
        found = self.prefixes.hits
        ticket.histories.update(history for run in runs for history in run.histories)
        ticket.outstanding = deque(self.prefixes.place(runs))
        ticket.timings.cached_rows += self.prefixes.hits - found

    def _sharing(self) -> list[tuple[Ticket, Placed]]:
        """The runs of the next pack with their tickets: runs of one kind within the row budget.

        The questions add one run each in turn. If a question's next run does not fit, it adds no
        more, but the others go on. Otherwise a long run that does not fit would keep a question
        whose own long run is in the pack from adding its last runs.
        """
        waiting = [ticket for ticket in self.active if ticket.outstanding]
        if not waiting:
            return []
        kind = kind_of(waiting[0].outstanding[0].run, self.model)

        def alike(placed: Placed) -> bool:
            return kind_of(placed.run, self.model) == kind

        turns = deque(
            (ticket, takewhile(alike, ticket.outstanding))
            for ticket in (waiting if self.batching else waiting[:1])
        )
        filling = Filling(self.row_budget)
        sharing: list[tuple[Ticket, Placed]] = []
        while turns:
            ticket, runs = turns.popleft()
            placed = next(runs, None)
            if placed is not None and filling.add(placed):
                sharing.append((ticket, placed))
                turns.append((ticket, runs))
        return sharing

    def _run(self, sharing: Sequence[tuple[Ticket, Placed]], again: bool = True) -> None:
        owners = list(dict.fromkeys(ticket for ticket, _ in sharing))

        def proceed() -> None:
            self.beats()
            if not any(owner.wanted for owner in owners):
                raise _Unwanted

        start = time.monotonic()
        failure: Exception | None = None
        try:
            activations = self._walk([placed for _, placed in sharing], proceed)
            if len(owners) > 1:
                # Another question's NaN spreads in a pack, so each pack is tested by itself.
                require(activations[0].conditions)
        except _Unwanted:
            return
        except Exception as error:
            failure = _named(error)
        if failure is not None:
            # The memory of the failed pack is free only here, after the except block.
            if isinstance(failure, OutOfMemory) and again and self._free_memory():
                self._run(sharing, again=False)
            elif len(owners) == 1:
                self._end(owners[0], None, failure)
            else:
                for owner in owners:
                    self._run([one for one in sharing if one[0] is owner])
            return
        seconds = time.monotonic() - start
        self.observe(seconds, len(sharing))
        for owner in owners:
            owner.timings.began.setdefault("forward", start)
            owner.timings.forward += seconds
            owner.seconds += seconds / len(owners)
            owner.conditions += activations[0].conditions
        for (ticket, placed), read in zip(sharing, activations, strict=True):
            ticket.received.append(read)
            ticket.outstanding.popleft()
            self.prefixes.release([placed])

    def _walk(self, placed: Sequence[Placed], proceed: Callable[[], None]) -> list[Activations]:
        self.prefixes.verify()
        filling = Filling()
        for one in placed:
            filling.add(one)
        return walk(self.model, filling, self.prefixes, proceed, self.graphs)

    def _free_memory(self) -> bool:
        """Drop cached prefixes and CUDA graphs; returns whether there were any."""
        freed = self.prefixes.clear()
        if self.graphs is not None:
            freed += self.graphs.clear()
        if freed and self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return freed > 0

    def _end(self, ticket: Ticket, answer: Any, error: BaseException | None) -> None:
        self.active.remove(ticket)
        ticket.plan.question.close()
        self.prefixes.release(ticket.outstanding)
        self.prefixes.forget(ticket.histories)
        ticket.outstanding = deque()
        ticket.answered = error is None
        ticket.settle(answer, error)


def expiry(ticket: Ticket) -> BaseException:
    """The error of a question that is no longer wanted."""
    seconds = ticket.deadline - ticket.asked
    return DeadlineExceeded(f"The request was not answered within its deadline of {seconds:g} s.")


def _named(error: Exception) -> Exception:
    """The error itself, or `OutOfMemory` if it is a lack of memory."""
    if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
        # The device is lost to this process, so no later result could be trusted.
        raise error
    no_memory = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    if no_memory or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return OutOfMemory("There was not enough memory for this request. Retry, or ask for less.")
    # The frames of a traceback would keep their tensors alive.
    return error.with_traceback(None) if isinstance(error, ServiceError) else error
