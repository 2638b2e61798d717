"""Several questions as one: what they ask goes into one pack, and shared rows are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.engine import Activations, Question, Run


def together(*questions: Question[Any]) -> Question[tuple[Any, ...]]:
    """The answers to several questions, in their order."""
    answers: list[Any] = [None] * len(questions)
    received: dict[int, Sequence[Activations] | None] = dict.fromkeys(range(len(questions)))
    while received:
        asked: dict[int, Sequence[Run]] = {}
        for i, activations in received.items():
            question = questions[i]
            try:
                asked[i] = next(question) if activations is None else question.send(activations)
            except StopIteration as stop:
                answers[i] = stop.value
        received = {}
        if asked:
            read = iter((yield [run for runs in asked.values() for run in runs]))
            received = {i: [next(read) for _ in runs] for i, runs in asked.items()}
    return tuple(answers)
