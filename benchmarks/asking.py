"""Ways to get questions answered in this process: as the service does, or with one thing undone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from service.engine import Activations, Model, Question, Run, Site
from service.engine.prefixes import Prefixes
from service.engine.scheduler import Answer, Scheduler, Ticket
from service.engine.walk import forward

ROW_BUDGET = 512


def together(
    model: Model, *questions: Question[Any], prefixes: Prefixes | None = None
) -> list[Any]:
    """The answers to questions that are under way at once, through the service's scheduler."""
    answered: dict[int, Any] = {}
    scheduler = Scheduler(model, row_budget=ROW_BUDGET, batching=True, prefixes=prefixes)
    for i, question in enumerate(questions):

        def settle(answer: Any, error: BaseException | None, i: int = i) -> None:
            if error is not None:
                raise error
            answered[i] = answer

        scheduler.admit(Ticket(question, time.monotonic() + math.inf, settle))
    while scheduler.active:
        scheduler.turn()
    return [answered[i] for i in range(len(questions))]


def apart(model: Model, question: Question[Answer]) -> Answer:
    """The answer to a question whose every run has a forward of its own."""
    try:
        runs = next(question)
        while True:
            runs = question.send([forward(model, [run])[0] for run in runs])
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer


def reading_more(
    question: Question[Answer],
    more: Callable[[Run], Mapping[Site, Sequence[int]]],
    seen: Callable[[Activations], object] = lambda _read: None,
) -> Question[Answer]:
    """A question whose runs read more than it asks for, so that more of the model is computed.

    Args:
        question: Which sees what it asked for, and more.
        more: The further sites and rows of a run.
        seen: Called with what each run read.
    """
    try:
        runs = next(question)
        while True:
            read = yield [replace(run, reads={**more(run), **run.reads}) for run in runs]
            for one in read:
                seen(one)
            runs = question.send(read)
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer
