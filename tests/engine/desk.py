"""A scheduler with a desk before it, so that a test can drive it by hand."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from service.engine import Activations, Model, Plan, Question, Run, Site
from service.engine.scheduler import Scheduler, Ticket

READ = Site(1, "resid_post")


def run(*ids: int, site: Site = READ, dtype: torch.dtype | None = None) -> Run:
    """A run that reads its last row at one site."""
    return Run(ids, range(len(ids)), {site: [len(ids) - 1]}, dtype)


def asking(*rounds: Sequence[Run]) -> Question[list[Activations]]:
    """Yields the rounds of runs one behind the other and returns all that it received."""
    received: list[Activations] = []
    for runs in rounds:
        received += yield list(runs)
    return received


@dataclass
class Desk:
    """A scheduler with what it reports: answers by name, and the runs of each forward.

    Args:
        model: The resident model.
        row_budget: As the scheduler's.
        batching: As the scheduler's.
    """

    model: Model
    row_budget: int = 2048
    batching: bool = True
    ended: dict[str, Any] = field(default_factory=dict)
    forwards: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            self.model,
            row_budget=self.row_budget,
            batching=self.batching,
            observe=lambda _seconds, runs: self.forwards.append(runs),
        )

    def admit(
        self, name: str, question: Question[Any], seconds: float = 60.0, kind: type[Ticket] = Ticket
    ) -> Ticket:
        """Take a question in under a name."""

        def settle(answer: Any, error: BaseException | None) -> None:
            assert name not in self.ended, "settled twice"
            self.ended[name] = answer if error is None else error

        ticket = kind(Plan(question), time.monotonic() + seconds, settle)
        self.scheduler.admit(ticket)
        return ticket

    def turns(self, count: int = 50) -> None:
        """Turn until nothing is under way, at most so often."""
        for _ in range(count):
            if not self.scheduler.active:
                return
            self.scheduler.turn()
