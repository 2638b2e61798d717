"""A scheduler that a test drives by hand, with a record of its answers and forwards."""

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
    """A question that yields the rounds of runs in turn and returns everything it received."""
    received: list[Activations] = []
    for runs in rounds:
        received += yield list(runs)
    return received


@dataclass
class Desk:
    """A scheduler with a record of its answers by name, and of the number of runs of each forward.

    Args:
        model: The resident model.
        row_budget: Row budget of the scheduler.
        batching: Whether the scheduler batches questions.
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
        """Admit a question under a name."""

        def settle(answer: Any, error: BaseException | None) -> None:
            assert name not in self.ended, "settled twice"
            self.ended[name] = answer if error is None else error

        ticket = kind(Plan(question), time.monotonic() + seconds, settle)
        self.scheduler.admit(ticket)
        return ticket

    def turns(self, count: int = 50) -> None:
        """Turn until no question is active, at most `count` times."""
        for _ in range(count):
            if not self.scheduler.active:
                return
            self.scheduler.turn()
