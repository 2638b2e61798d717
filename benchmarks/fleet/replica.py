"""A replica: a queue, one compute thread and a prefix cache, with the rules of `service.engine`."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.fleet.routing import Context

RUNS = 2
"""Runs of a question: first the one with its context, then that of the baseline, which adds one row
to the same context."""
PACE_KEPT = 0.9
"""Factor by which each new answer lowers the weight of earlier ones (`Engine._note_pace`)."""
Outcome = Literal["answered", "refused", "expired"]


@dataclass(frozen=True)
class Times:
    """Service times of one replica, in seconds.

    Args:
        cold: Compute thread's time for a question whose context is not cached.
        known: The same for a question whose context is cached.
        joined: Time that each further question adds to a forward.
        outside: Time of a request outside the compute thread: HTTP, JSON, the answer's bytes.
    """

    cold: float
    known: float
    joined: float
    outside: float = 0.0


@dataclass(frozen=True)
class Limits:
    """Limits of one replica. The defaults are the service's on a CPU.

    Args:
        contexts: Maximum contexts in the prefix cache.
        tokens: Tokens of a context.
        row_budget: Maximum rows of a forward.
        slots: Maximum questions in progress at once; 1 without batching.
        queue: Maximum waiting questions.
        deadline: Maximum seconds for a question to wait and to be computed.
    """

    contexts: int
    tokens: int = 400
    row_budget: int = 512
    slots: int = 16
    queue: int = 64
    deadline: float = 60.0


@dataclass(eq=False, slots=True)
class Request:
    """A simulated request.

    Args:
        sent: Time at which its client sent it.
        context: Its context.
        settle: Function that is called once, with the outcome.
        runs: Runs that are not computed yet.
        known: Whether its context was cached when the replica took it out of the queue.
        seconds: Compute seconds so far. A shared forward is divided equally.
    """

    sent: float
    context: Context
    settle: Callable[[Request, Outcome], None]
    runs: int = RUNS
    known: bool = False
    seconds: float = 0.0


@dataclass(eq=False)
class Replica:
    """A simulated service.

    Args:
        times: Its service times.
        limits: Its limits.
        cache: Names of cached contexts, the least recently used first.
        waiting: Questions in the queue.
        active: Questions in progress, without those that the running forward completes.
        completing: Questions that the running forward completes; None if no forward runs.
        taking: Whether the proxy sends it requests.
        life: Number of its restarts.
    """

    times: Times
    limits: Limits
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    waiting: deque[Request] = field(default_factory=deque)
    active: deque[Request] = field(default_factory=deque)
    completing: list[Request] | None = None
    taking: bool = True
    life: int = 0
    _seconds: float = 0.0
    _answered: float = 0.0

    @property
    def running(self) -> int:
        """Number of questions in progress."""
        return len(self.active) + len(self.completing or ())

    @property
    def load(self) -> int:
        """Number of questions that wait or are in progress."""
        return len(self.waiting) + self.running

    def accepts(self) -> bool:
        """Whether it accepts a further question, by the rules of `Engine._require_place`."""
        if len(self.waiting) >= self.limits.queue + max(0, self.limits.slots - self.running):
            return False
        return self._seconds * self.load <= self.limits.deadline * self._answered or not self.load

    def admit(self, now: float) -> list[Request]:
        """Drop questions whose deadline has passed, and take others out of the queue.

        Returns:
            The dropped questions.
        """
        oldest = now - self.limits.deadline
        expired = [one for one in self.active if one.sent < oldest]
        if expired:
            self.active = deque(one for one in self.active if one.sent >= oldest)
        while self.waiting and self.waiting[0].sent < oldest:
            expired.append(self.waiting.popleft())
        while self.waiting and len(self.active) < self.limits.slots:
            request = self.waiting.popleft()
            request.known = request.context.name in self.cache
            self.active.append(request)
        return expired

    def begin(self) -> float:
        """Begin a forward, to which the questions add one run each in turn.

        A question whose next run does not fit adds no more, as in `Scheduler._sharing`.

        Returns:
            Seconds of the forward.
        """
        limits, cache, active = self.limits, self.cache, self.active
        rows, taken, computed = 0, dict[Request, None](), set[int]()
        turns = deque(active)
        while turns:
            request = turns.popleft()
            name = request.context.name
            new = request.runs == RUNS and name not in cache and name not in computed
            need = 1 + limits.tokens * new
            if taken and rows + need > limits.row_budget:
                continue
            if new:
                computed.add(name)
            rows += need
            request.runs -= 1
            taken[request] = None
            if request.runs:
                turns.append(request)
        seconds = self.times.cold * len(computed) if computed else self.times.known
        seconds += self.times.joined * (len(taken) - max(len(computed), 1))
        for request in taken:
            request.seconds += seconds / len(taken)
            self.use(request.context.name)
        self.completing = [one for one in taken if not one.runs]
        if active[0].runs:
            active.rotate(-1)
        self.active = deque(one for one in active if one.runs)
        return seconds

    def end(self) -> list[Request]:
        """End the forward; returns the questions that it completed."""
        done, self.completing = self.completing or [], None
        for request in done:
            self._seconds = PACE_KEPT * self._seconds + request.seconds
            self._answered = PACE_KEPT * self._answered + 1
        return done

    def use(self, name: int) -> None:
        """Mark a context as most recently used, and evict another if the cache is too full."""
        self.cache[name] = None
        self.cache.move_to_end(name)
        if len(self.cache) > self.limits.contexts:
            self.cache.popitem(last=False)

    def lose(self) -> list[Request]:
        """Forget everything, as a killed process does; returns the questions that it had."""
        lost = [*(self.completing or ()), *self.active, *self.waiting]
        self.completing = None
        self.active.clear()
        self.waiting.clear()
        self.cache.clear()
        self._seconds = self._answered = 0.0
        self.life += 1
        for request in lost:
            request.runs, request.known, request.seconds = RUNS, False, 0.0
        return lost
