"""Questions, and the plans that say what a question will take before any of it is computed.

A question is a generator: it yields runs, receives their activations, and returns its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from service.engine.model import Model
from service.engine.prefixes import Prefixes
from service.engine.readback import Condition, require
from service.engine.run import Activations, Follow, Run
from service.engine.walk import forward
from service.errors import ServiceError

Answer = TypeVar("Answer")
Answer_co = TypeVar("Answer_co", covariant=True)
Question: TypeAlias = Generator[Sequence[Run], Sequence[Activations], Answer]
Compute: TypeAlias = Callable[[Model, Sequence[Run]], Sequence[Activations]]
"""Computes the activations of each run."""

SMALL_PACK = 32
"""Rows whose matrix products take about as long as reading the weights once."""


@dataclass(frozen=True)
class Work:
    """The work of a question.

    Args:
        rows: Rows (tokens at positions) that its runs compute. Shared beginnings count once.
        layers: Number of blocks that the rows pass through.
        number_bytes: Bytes of a number in the dtype of the runs.
        forwards: Number of forwards, one after another, that the rows need at least.
    """

    rows: int = 0
    layers: int = 1
    number_bytes: int = 4
    forwards: int = 1

    @property
    def size(self) -> int:
        """Rows × layers × bytes: the number that a limit applies to."""
        return self.rows * self.layers * self.number_bytes

    @property
    def cost(self) -> int:
        """Estimate proportional to the compute time: the size with the reading of the weights."""
        rows = self.rows + SMALL_PACK * self.forwards
        return rows * self.layers * self.number_bytes


@dataclass(frozen=True)
class AnswerSize:
    """The size of an answer, known before it is computed.

    Args:
        entries: Number of entries.
        tokens: Number of echoed tokens.
        numbers: float32 numbers in its tensors; a float64 number counts twice.
        entry_bytes: Upper estimate of an entry's bytes in JSON, without its tensors.
    """

    entries: int = 1
    tokens: int = 0
    numbers: int = 0
    entry_bytes: int = 2048


@dataclass(frozen=True, eq=False)
class Batch(Generic[Answer]):
    """How requests of one kind become one question.

    Args:
        ask: Forms one question of the items of several requests; it answers them in their order.
        options: What must be equal in the requests that share a question.
        item: What differs between them.
    """

    ask: Callable[[Sequence[Any]], Question[tuple[Answer, ...]]]
    options: Any
    item: Any

    def alone(self) -> Question[Answer]:
        """The question of this request as a batch of one."""
        (answer,) = yield from self.ask([self.item])
        return answer


@dataclass(frozen=True, eq=False)
class Plan(Generic[Answer_co]):
    """A question with its work and the size of its answer.

    Args:
        question: The generator.
        runs: The runs that it has yielded already; empty if it has not been started.
        work: The work of all its runs.
        size: The size of its answer.
        later_rows: Rows of the runs that it yields after its first ones.
        later_forwards: Number of forwards that these rows need, if each depends on the one before.
        batch: How it shares a question with other requests; None: it cannot.
    """

    question: Question[Answer_co]
    runs: Sequence[Run] = ()
    work: Work = field(default_factory=Work)
    size: AnswerSize = field(default_factory=AnswerSize)
    later_rows: int = 0
    later_forwards: int = 0
    batch: Batch[Any] | None = None


def plan(
    model: Model,
    question: Question[Answer],
    size: AnswerSize,
    later_rows: int = 0,
    later_forwards: int = 0,
    batch: Batch[Answer] | None = None,
) -> Plan[Answer]:
    """Start a question, which computes nothing yet, and measure the work of the runs it yields.

    Args:
        model: The resident model.
        question: A generator that has not been started.
        size: The size of its answer.
        later_rows: Rows of the runs that it yields after its first ones.
        later_forwards: Number of forwards that these rows need, if each depends on the one before.
        batch: How it shares a question with other requests.
    """
    runs = next(question)
    dtype = runs[0].dtype or model.dtype
    layers = 1 + max(run.depth - run.first_layer for run in runs)
    rows = distinct_rows(runs) + later_rows
    work = Work(rows, layers, dtype.itemsize, 1 + later_forwards)
    return Plan(question, runs, work, size, later_rows, later_forwards, batch)


def distinct_rows(runs: Sequence[Run]) -> int:
    """Number of rows that runs compute together: equal beginnings count once.

    A patched run, or one that begins at a layer, shares its rows with no other run, and a history
    does not share its own.
    """
    # The trie of a pack has as many rows, but takes three times as long for 500 prefixes.
    own = [run for run in runs if not run.shares]
    sources = [run.patch.source for run in own if isinstance(run.patch, Follow)]
    # Many runs follow one source object, whose path is formed once.
    sharing = dict.fromkeys([*(run for run in runs if run.shares), *sources])
    grown = {run.history: len(run.tokens) - run.history.begins for run in sharing if run.history}
    paths = sorted({_path(run) for run in sharing} - {b""})
    # In sorted order each path has its longest common beginning with its neighbour.
    shared = sum(_shared(*pair) for pair in pairwise(paths))
    apart = sum(len(run.tokens) for run in own) + sum(grown.values())
    return apart + sum(map(len, paths)) // ROW_BYTES - shared


ROW_BYTES = 8


def _path(run: Run) -> bytes:
    """The rows that a run may share as bytes whose order is that of the rows: (id, position),
    big-endian."""
    stop = None if run.history is None else run.history.begins
    return run.rows[:stop].astype(">i8").tobytes()


def _shared(one: bytes, other: bytes) -> int:
    """Number of rows that two paths begin with in common."""
    count = min(len(one), len(other)) // ROW_BYTES
    differ = np.frombuffer(one, "i8", count) != np.frombuffer(other, "i8", count)
    return int(differ.argmax()) if differ.any() else count


def together(*questions: Question[Any]) -> Question[tuple[Any, ...]]:
    """Ask several questions as one: their runs share packs, and shared rows are computed once.

    Returns:
        The answers, in the order of the questions.
    """
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


def joined(model: Model, plans: Sequence[Plan[Answer]]) -> Plan[tuple[Answer, ...]]:
    """One plan for several plans, whose answers it returns in their order.

    Requests whose batches have equal options become one question, which computes their figures
    together. Other questions are asked side by side. In both cases the given plans are used up.

    Args:
        model: The resident model.
        plans: Plans that have not been asked, of runs of one dtype.
    """
    size = AnswerSize(
        entries=sum(one.size.entries for one in plans),
        tokens=sum(one.size.tokens for one in plans),
        numbers=sum(one.size.numbers for one in plans),
        entry_bytes=max(one.size.entry_bytes for one in plans),
    )
    later = sum(one.later_rows for one in plans)
    batches = [one.batch for one in plans if one.batch is not None]
    alike = len(batches) == len(plans) and all(
        batch.options == batches[0].options for batch in batches
    )
    if not alike:
        forwards = max(one.later_forwards for one in plans)
        return plan(model, together(*map(_begun, plans)), size, later, forwards)
    # Their own questions were started to measure them, and end here.
    for one in plans:
        one.question.close()
    return plan(model, batches[0].ask([batch.item for batch in batches]), size, later)


def _begun(one: Plan[Answer]) -> Question[Answer]:
    """A planned question, from its first runs on."""
    received = yield one.runs
    while True:
        try:
            runs = one.question.send(received)
        except StopIteration as stop:
            answer: Answer = stop.value
            return answer
        received = yield runs


def drive(
    model: Model, question: Question[Answer] | Plan[Answer], compute: Compute | None = None
) -> Answer:
    """Compute the answer to one question on this thread.

    The question receives the error of a forward and may handle it.

    Args:
        model: The resident model.
        question: The question, or its plan.
        compute: Computes the runs that the question yields together; None: in one forward, without
            a prefix cache.
    """
    if compute is None:
        # Histories of runs last as long as this tree.
        compute = partial(forward, prefixes=Prefixes(dtype=model.dtype))
    generator = question.question if isinstance(question, Plan) else question
    conditions: list[Condition] = []
    try:
        runs = (question.runs if isinstance(question, Plan) else ()) or next(generator)
        while True:
            try:
                received = compute(model, runs) if runs else ()
            except ServiceError as error:
                runs = generator.throw(error)
            else:
                conditions += [one for read in received for one in read.conditions]
                runs = generator.send(received)
    except StopIteration as stop:
        # The question may have read back nothing, so its conditions are tested here.
        require(conditions)
        answer: Answer = stop.value
        return answer
