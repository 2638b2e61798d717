"""The engine: the resident model behind one compute thread and a bounded queue.

The thread loads the model, runs the self-check, and then answers questions until it is closed.
Inference mode and thread counts are per thread, so they are set there.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from service.engine.device import (
    LEAST_CACHED,
    ROW_BUDGETS,
    allocator_bytes,
    enter,
    weight_bytes,
)
from service.engine.graphs import Graphs
from service.engine.machine import available_cores, give_back_free_memory, give_back_large_blocks
from service.engine.model import Model
from service.engine.prefixes import Prefixes
from service.engine.question import Answer, Plan
from service.engine.scheduler import Scheduler, Ticket, Timings, expiry
from service.errors import Draining, Loading, QueueFull, SelfCheckFailed, ServiceError

ACTIVE = 16
"""Maximum questions under way at once, for questions of few rows and of many rows each."""
FEW_ROWS = 256
"""Rows up to which a question counts as one of few rows."""
CLOSE_SECONDS = 5.0
"""Seconds that `close` waits for the block or step that is under way."""
TRIM_SECONDS = 1.0
"""Seconds of work after which free memory is returned to the system. Cached prefixes lie between
the tensors of a forward, so the C library's heap would otherwise only grow. It takes 10 ms."""


class Engine:
    """Keeps one model resident and answers questions from any event loop.

    Args:
        load: Loads the model. It is called on the compute thread.
        check: Returns whether the self-check holds. It is called on the compute thread.
        queue_size: Maximum number of waiting questions.
        row_budget: Maximum rows of one forward; 0: by the type of device (`ROW_BUDGETS`).
        batching: Whether runs of different questions share a forward.
        prefix_cache_bytes: Maximum bytes of the prefix cache; 0 disables it.
        graph_memory_bytes: Maximum bytes of CUDA graphs on a GPU; 0 records none.
        threads: CPU threads; 0: one per core that this process may use.
        observe: Called after each forward with its seconds and its number of runs.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        check: Callable[[Model], bool],
        *,
        queue_size: int = 64,
        row_budget: int = 0,
        batching: bool = True,
        prefix_cache_bytes: int = 0,
        graph_memory_bytes: int = 0,
        threads: int = 0,
        observe: Callable[[float, int], None] = lambda _seconds, _runs: None,
    ) -> None:
        self._load = load
        self._check = check
        self._queue_size = queue_size
        self._active = ACTIVE if batching else 1
        self._batching = batching
        self._prefix_cache_bytes = prefix_cache_bytes
        self._graph_memory_bytes = graph_memory_bytes
        self._row_budget = row_budget
        self._threads = threads or available_cores()
        self._schedule = partial(
            Scheduler,
            batching=batching,
            observe=observe,
            beats=self._beats,
        )
        self._thread = threading.Thread(target=self._main, name="compute", daemon=True)
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running = 0
        self._cost = 0
        self._beat = time.monotonic()
        self._seconds = self._answered = 0.0
        self._closing = False
        self._model: Model | None = None
        self._weight_bytes = 0
        self._scheduler: Scheduler | None = None
        self.prefixes: Prefixes | None = None
        self.graphs: Graphs | None = None
        self._sound: bool | None = None
        self.draining = False
        self.fatal: BaseException | None = None

    def start(self) -> None:
        """Start to load the model. Returns at once."""
        self._thread.start()

    def close(self) -> None:
        """End the thread before its next block. Waiting and running questions are refused.

        A load cannot be interrupted, so this does not wait for it, nor for a stuck thread.
        """
        with self._changed:
            self.draining = self._closing = True
            for ticket in tuple(self._scheduler.active) if self._scheduler is not None else ():
                ticket.cancelled = True
            self._changed.notify_all()
        if self._thread.is_alive() and self._scheduler is not None:
            self._thread.join(CLOSE_SECONDS)

    @property
    def model(self) -> Model:
        """The resident model, once its self-check holds.

        Raises:
            Loading: It is not loaded yet.
            SelfCheckFailed: The self-check did not hold, or the engine has failed.
        """
        if (fatal := self.fatal) is not None:
            reason = fatal.detail if isinstance(fatal, ServiceError) else type(fatal).__name__
            raise SelfCheckFailed(f"The engine has failed: {reason}", retry_after=60.0)
        if self._sound is None or self._model is None:
            raise Loading("The model is still loading.")
        if not self._sound:
            raise SelfCheckFailed("The equivalence check at start did not hold.", retry_after=60.0)
        return self._model

    @property
    def row_budget(self) -> int:
        """Maximum rows of one forward; 0 until the model is loaded if it depends on the device."""
        by_device = 0 if self._model is None else ROW_BUDGETS[self._model.device.type]
        return self._row_budget or by_device

    @property
    def checked(self) -> bool:
        """Whether the model is loaded and its self-check has run, with any result."""
        return self._sound is not None

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes of the device's memory by kind; empty until the model is loaded.

        On a GPU, `allocated` and `reserved` include all other kinds.
        """
        if self._model is None or self.prefixes is None:
            return {}
        held = {"weights": self._weight_bytes, "prefix_cache": self.prefixes.bytes}
        if self.graphs is not None:
            held["graphs"] = self.graphs.bytes
        return held | allocator_bytes(self._model.device)

    @property
    def graph_captures(self) -> int:
        """Number of CUDA graphs that were captured."""
        return 0 if self.graphs is None else self.graphs.captures

    @property
    def waiting(self) -> int:
        """Number of questions in the queue."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether no question waits and none runs."""
        return not self._waiting and not self._running

    @property
    def stuck_for(self) -> float:
        """Seconds since the compute thread last began a forward, a block or a question's step. 0
        while it loads or has no questions."""
        return time.monotonic() - self._beat if self._running else 0.0

    @property
    def outstanding_seconds(self) -> float:
        """Estimated seconds for all waiting and running questions, at the current pace."""
        return self._seconds / self._answered * self._cost if self._answered else 0.0

    async def ask(
        self,
        plan: Plan[Answer],
        seconds: float,
        *,
        accepted: bool = False,
        timings: Timings | None = None,
    ) -> tuple[Answer, Timings]:
        """Answer a question, and report its timings.

        If the caller is cancelled, its question leaves the queue, or stops before the next block.

        Args:
            plan: The question and its work. Questions of few rows have slots of their own.
            seconds: Time until it expires.
            accepted: Whether it continues a request that was accepted before. It is then not
                refused while the service drains or the queue is full, so that an accepted request
                is answered to its end.
            timings: Filled while the question is answered, even if it fails; None creates one.

        Raises:
            Draining: No new work is taken.
            QueueFull: The queue is full, or the expected wait exceeds `seconds`.
            DeadlineExceeded: The question expired.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def settle(answer: Any, error: BaseException | None) -> None:
            # If the loop is closed, no caller waits any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, future, answer, error)

        deadline = time.monotonic() + seconds
        ticket = Ticket(plan, deadline, settle, timings=timings or Timings())
        with self._changed:
            self._admit(ticket, seconds, accepted)
        try:
            return await future, ticket.timings
        finally:
            ticket.cancelled = True
            with self._changed:
                if ticket in self._waiting:
                    self._drop(ticket)

    def _admit(self, ticket: Ticket, seconds: float, accepted: bool) -> None:
        """Put a question into the queue, or refuse it."""
        if self._closing or (self.draining and not accepted):
            raise Draining("The service is shutting down.", retry_after=5.0)
        if not accepted:
            self._require_place(seconds)
        self._waiting.append(ticket)
        self._cost += ticket.plan.work.cost
        self._changed.notify_all()

    def _require_place(self, seconds: float) -> None:
        """Refuse a new question if the queue is full, or if it could not be answered in time."""
        before = self.outstanding_seconds
        refusal, retry_after = "", 0
        if len(self._waiting) >= self._queue_size + max(0, self._active - self._running):
            refusal = f"The queue is full: {len(self._waiting)} requests wait."
            retry_after = max(1, math.ceil(before))
        elif before > seconds:
            refusal = f"The expected wait of {before:.0f} s exceeds the deadline of {seconds:g} s."
            retry_after = math.ceil(before - seconds)
        if refusal:
            raise QueueFull(f"{refusal} Retry after {retry_after} s.", retry_after=retry_after)

    def _main(self) -> None:
        try:
            give_back_large_blocks()
            torch.set_num_threads(self._threads)
            torch.backends.cuda.matmul.allow_tf32 = False
            with torch.inference_mode():
                self._model = self._load()
                enter(self._model.device)
                self._weight_bytes = weight_bytes(self._model)
                give_back_free_memory()
                self._sound = self._check(self._model)
                kind = self._model.device.type
                self.prefixes = Prefixes(
                    self._prefix_cache_bytes, self._model.dtype, LEAST_CACHED[kind]
                )
                if kind == "cuda":
                    self.graphs = Graphs(self._graph_memory_bytes)
                scheduler = self._schedule(
                    self._model,
                    row_budget=self.row_budget,
                    prefixes=self.prefixes,
                    graphs=self.graphs,
                )
                self._scheduler = scheduler
                trimmed = time.monotonic()
                while self._take(scheduler):
                    before = tuple(scheduler.active)
                    scheduler.turn()
                    left = set(scheduler.active)
                    ended = [ticket for ticket in before if ticket not in left]
                    self._note_pace(ended)
                    if time.monotonic() - trimmed > TRIM_SECONDS:
                        give_back_free_memory()
                        trimmed = time.monotonic()
        except BaseException as error:
            self.fatal = error
        finally:
            self._refuse_all()

    def _take(self, scheduler: Scheduler) -> bool:
        """Admit questions from the queue, or wait for one. False when the engine is closed."""
        with self._changed:
            self._running = len(scheduler.active)
            while not self._waiting and not scheduler.active and not self._closing:
                self._changed.wait()
            if self._closing:
                return False
            for ticket in tuple(self._waiting):
                if not ticket.wanted:
                    self._drop(ticket)
                    ticket.settle(None, expiry(ticket))
                elif self._has_slot(ticket, scheduler.active):
                    self._waiting.remove(ticket)
                    scheduler.admit(ticket)
            self._beats()
            self._running = len(scheduler.active)
        return True

    def _drop(self, ticket: Ticket) -> None:
        """Take a question out of the queue that will not run."""
        self._waiting.remove(ticket)
        ticket.leave_queue()
        self._cost -= ticket.plan.work.cost

    def _has_slot(self, ticket: Ticket, active: Iterable[Ticket]) -> bool:
        """Whether a question may run. Questions of few and of many rows have separate slots, so
        that neither waits for the others."""
        few = ticket.plan.work.rows <= FEW_ROWS
        alike = [(one.plan.work.rows <= FEW_ROWS) == few or not self._batching for one in active]
        return sum(alike) < self._active

    def _note_pace(self, ended: Sequence[Ticket]) -> None:
        """Update the compute seconds per unit of cost, an average of answered questions in which
        each weighs as much as its cost and a tenth less with every later one.

        Questions without an answer are excluded: how much of their cost was computed is unknown."""
        for ticket in ended:
            if ticket.answered:
                self._seconds = 0.9 * self._seconds + ticket.seconds
                self._answered = 0.9 * self._answered + ticket.plan.work.cost
        with self._changed:
            self._cost -= sum(ticket.plan.work.cost for ticket in ended)

    def _beats(self) -> None:
        self._beat = time.monotonic()

    def _refuse_all(self) -> None:
        refusal = Draining("The service is shutting down.", retry_after=5.0)
        with self._changed:
            self.draining = self._closing = True
            self._running = self._cost = 0
            if self._scheduler is not None:
                self._scheduler.abort(refusal)
            for ticket in self._waiting:
                ticket.settle(None, refusal)
            self._waiting.clear()


def _settle(future: asyncio.Future[Any], answer: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(answer)
    else:
        future.set_exception(error)
