"""A sweep: the same question about many pairs, a JSON line each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from deltaw_client import answers, problems, resources
from deltaw_client.answers import Received
from deltaw_client.calls import Call, plain
from deltaw_client.errors import DeltawError, Timeout
from deltaw_client.ledger import Ledger
from deltaw_client.problems import PROBLEM_ERRORS, ProblemError
from deltaw_client.progress import progress_bar
from deltaw_client.resources import Text
from schemas.common import adapter, write_answer
from schemas.problems import Problem

Pair = tuple[Text, Text] | Mapping[str, Any]
"""(context, query), or a mapping of a resource's fields."""
Resource = Literal["weight_updates", "equivalence_checks", "trajectories", "attributions"]

CALLS: Mapping[Resource, Callable[..., Call[Any]]] = {
    "weight_updates": resources.weight_updates,
    "equivalence_checks": resources.equivalence_checks,
    "trajectories": resources.trajectories,
    "attributions": resources.attributions,
}
KINDS: Mapping[str, type[Received]] = {
    kind.__name__: kind
    for kind in (
        answers.WeightUpdates,
        answers.JointUpdates,
        answers.EquivalenceChecks,
        answers.Trajectories,
        answers.Attributions,
    )
}
"""What a line's `kind` names."""
OF_ALL_PAIRS = (
    problems.MissingKey,
    problems.WrongKey,
    problems.UnknownHost,
    problems.NotFound,
    problems.MethodNotAllowed,
)
"""What no other pair would fare better with."""


@dataclass(frozen=True)
class Entry:
    """A line to write.

    Args:
        index: Of its pair.
        text: Its bytes, with the newline.
        answered: Whether it holds an answer.
    """

    index: int
    text: bytes
    answered: bool


@dataclass(frozen=True)
class Task:
    """One pair of a sweep.

    Args:
        index: Among the pairs.
        pair: The fields that are its own.
        call: With all its fields.
    """

    index: int
    pair: Mapping[str, Any]
    call: Call[Any]

    @cached_property
    def digest(self) -> str:
        """Of the whole call: another pair or another parameter has another one."""
        asked = [self.call.path, self.call.fields]
        text = json.dumps(asked, default=plain, sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def answered(self, answer: Received) -> Entry:
        """The line of an answer; its tensors are in base64, every bit kept."""
        beside = {"request_id": answer.request_id, "server_timing": answer.server_timing}
        said = write_answer(answer).decode()
        return self._entry(f'{json.dumps(beside)[1:-1]}, "answer": {said}', True)

    def failed(self, error: DeltawError) -> Entry | DeltawError:
        """The line of a failure; the error itself where no pair would fare better."""
        if isinstance(error, ProblemError) and not isinstance(error, OF_ALL_PAIRS):
            return self._entry(f'"problem": {write_answer(error.problem).decode()}')
        if isinstance(error, Timeout):
            return self._entry(f'"timeout": {json.dumps(str(error))}')
        return error

    def _entry(self, more: str, answered: bool = False) -> Entry:
        head = json.dumps(
            {
                "index": self.index,
                "digest": self.digest,
                "kind": self.call.answer.__name__,
                "pair": self.pair,
            },
            default=plain,
        )
        return Entry(self.index, f"{head[:-1]}, {more}}}\n".encode(), answered)


@dataclass(frozen=True)
class Line:
    """One line of a sweep's file.

    Args:
        index: Of the pair.
        pair: Its own fields.
        answer: As the client's method gives it, less what came beside it; None where it failed.
        error: What it failed with.
    """

    index: int
    pair: Mapping[str, Any]
    answer: Any = None
    error: DeltawError | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep that has ended; iterating it reads its lines.

    Args:
        path: Of its file.
        pairs: How many there are.
        answered: How many of them have an answer.
        failed: How many have a problem instead.
        kept: How many answers were in the file already.
    """

    path: Path
    pairs: int
    answered: int
    failed: int
    kept: int

    def __iter__(self) -> Iterator[Line]:
        return read_sweep(self.path)


@dataclass(frozen=True)
class Sweeping:
    """A sweep that is under way.

    Args:
        pairs: How many there are.
        tasks: Those that have no answer yet.
        ledger: The file.
        kept: How many answers were in it.
        path: Of the file.
        show: Takes how many pairs have a line.
    """

    pairs: int
    tasks: list[Task]
    ledger: Ledger
    kept: int
    path: Path
    show: Callable[[int], None]

    def take(self, outcome: Entry | DeltawError) -> None:
        """Write the next line.

        Raises:
            DeltawError: No pair would have an answer.
        """
        if isinstance(outcome, DeltawError):
            raise outcome
        self.ledger.write(outcome.index, outcome.text, outcome.answered)
        self.show(self.kept + self.ledger.written)

    @property
    def result(self) -> Sweep:
        """What there is so far."""
        ledger = self.ledger
        return Sweep(self.path, self.pairs, ledger.answered, ledger.failed, self.kept)


@contextmanager
def sweeping(
    pairs: Iterable[Pair],
    out: str | PathLike[str],
    resource: Resource,
    parameters: Mapping[str, Any],
    progress: bool | None,
) -> Iterator[Sweeping]:
    """A sweep, from the opening of its file until that is in order.

    Args:
        pairs: Of any number; all are read before the first is asked.
        out: The file.
        resource: What is asked of each.
        parameters: Of every call.
        progress: Whether to show a bar; None is on a terminal, where rich is installed.

    Raises:
        OtherSweep: The file is of another sweep.
        TypeError: A field is unknown.
    """
    tasks = [_task(index, pair, resource, parameters) for index, pair in enumerate(pairs)]
    path = Path(out)
    with closing(Ledger(path, [task.digest for task in tasks])) as ledger:
        kept = ledger.answered
        left = [task for task in tasks if not ledger.is_answered(task.index)]
        with progress_bar(len(tasks), kept, progress) as show:
            yield Sweeping(len(tasks), left, ledger, kept, path, show)


def _task(index: int, pair: Pair, resource: Resource, parameters: Mapping[str, Any]) -> Task:
    own = (
        dict(pair)
        if isinstance(pair, Mapping)
        else dict(zip(("context", "query"), pair, strict=True))
    )
    return Task(index, own, CALLS[resource](**{**parameters, **own}))


def read_sweep(path: str | PathLike[str]) -> Iterator[Line]:
    """The lines of a sweep's file, one at a time."""
    with Path(path).open("rb") as file:
        for text in file:
            told = json.loads(text)
            index, pair = told["index"], told["pair"]
            if "answer" in told:
                yield Line(index, pair, _answer(told))
            else:
                yield Line(index, pair, error=_error(told))


def _answer(told: Mapping[str, Any]) -> Received:
    kind = KINDS[told["kind"]]
    answer: Received = adapter(kind).validate_json(json.dumps(told["answer"]), extra="ignore")
    return answer


def _error(told: Mapping[str, Any]) -> DeltawError:
    if "problem" not in told:
        return Timeout(told["timeout"])
    problem: Problem = adapter(Problem).validate_python(told["problem"], extra="ignore")
    return PROBLEM_ERRORS.get(problem.code, ProblemError)(problem)
