"""A sweep: the same question about many pairs, answered as one JSON line for each pair."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from deltaw_client import answers, problems, resources
from deltaw_client.answers import LoadedModel, Received
from deltaw_client.calls import Call, plain
from deltaw_client.errors import DeltawError, OtherSweep, Timeout
from deltaw_client.ledger import Ledger, Origin, differences
from deltaw_client.problems import PROBLEM_ERRORS, ProblemError
from deltaw_client.progress import progress_bar
from deltaw_client.resources import Text
from schemas.common import adapter, write_answer
from schemas.problems import Problem

Pair = tuple[Text, Text] | Mapping[str, Any]
"""(context, query), or a mapping of a resource's fields."""
Resource = Literal["weight_updates", "equivalence_checks", "trajectories", "attributions"]

CALLS: Mapping[Resource, Callable[..., Call[Any]]] = {
    name: getattr(resources, name) for name in get_args(Resource)
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
"""Answer classes by a line's `kind`."""
FATAL = (
    problems.MissingKey,
    problems.WrongKey,
    problems.UnknownHost,
    problems.NotFound,
    problems.MethodNotAllowed,
)
"""Problems that every other pair would have too; they end the sweep."""


@dataclass(frozen=True)
class Entry:
    """A line to write, with its newline, and the index of its pair."""

    index: int
    text: bytes
    answered: bool


@dataclass(frozen=True)
class Task:
    """One pair of a sweep.

    Args:
        index: Index among the pairs.
        pair: The pair's own fields.
        call: The call with all its fields.
        origin: Origin of the sweep's numbers.
    """

    index: int
    pair: Mapping[str, Any]
    call: Call[Any]
    origin: Origin

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the whole call, which identifies the pair and its parameters."""
        asked = [self.call.path, self.call.fields]
        text = json.dumps(asked, default=plain, sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def answered(self, answer: Any) -> Entry:
        """Return an answer's line, with tensors in base64, bit by bit.

        Raises:
            OtherSweep: The service exchanged its model since the sweep began.
        """
        changed = differences(self.origin, {**self.origin, **vars(answer.model)})
        if changed:
            raise OtherSweep(f"the model changed during the sweep: {changed}; choose another file")
        beside = {"request_id": answer.request_id, "server_timing": answer.server_timing}
        said = write_answer(answer).decode()
        return self._entry(f'{json.dumps(beside)[1:-1]}, "answer": {said}', True)

    def failed(self, error: DeltawError) -> Entry | DeltawError:
        """Return an error's line, or the error itself if it ends the sweep."""
        if isinstance(error, ProblemError) and not isinstance(error, FATAL):
            return self._entry(f'"problem": {write_answer(error.problem).decode()}')
        if isinstance(error, Timeout):
            return self._entry(f'"timeout": {json.dumps(str(error))}')
        return error

    def _entry(self, more: str, answered: bool = False) -> Entry:
        head = json.dumps(
            {
                "index": self.index,
                "digest": self.digest,
                "origin": self.origin,
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
        index: Index of the pair.
        pair: The pair's own fields.
        answer: The answer, without its request id, timing and bytes; None if the pair failed.
        error: The error, if the pair failed.
    """

    index: int
    pair: Mapping[str, Any]
    answer: Any = None
    error: DeltawError | None = None


@dataclass(frozen=True)
class Sweep:
    """A finished sweep; iterate over it to read its lines.

    Args:
        path: Path of its file.
        pairs: Number of pairs.
        answered: Number of pairs with an answer.
        failed: Number of pairs with an error.
        kept: Number of answers that the file held before this sweep.
    """

    path: Path
    pairs: int
    answered: int
    failed: int
    kept: int

    def __iter__(self) -> Iterator[Line]:
        return read_sweep(self.path)


Plan = list[tuple[Mapping[str, Any], Call[Any]]]
"""Each pair's own fields and its call."""


def plan_sweep(pairs: Iterable[Pair], resource: Resource, parameters: Mapping[str, Any]) -> Plan:
    """Make the calls of a sweep.

    Args:
        pairs: The pairs; all are read before the first call.
        resource: Resource to ask about each pair.
        parameters: Fields of every call; a pair's own fields replace them.

    Raises:
        TypeError: The resource does not have such a field.
    """
    call = CALLS[resource]
    own = [
        dict(pair)
        if isinstance(pair, Mapping)
        else dict(zip(("context", "query"), pair, strict=True))
        for pair in pairs
    ]
    return [(fields, call(**{**parameters, **fields})) for fields in own]


@dataclass(frozen=True)
class RunningSweep:
    """A sweep whose file is open.

    Args:
        tasks: Tasks without an answer.
        take: Writes the outcome of the next task; raises an error that ends the sweep.
        result: Returns the sweep so far.
    """

    tasks: list[Task]
    take: Callable[[Entry | DeltawError], None]
    result: Callable[[], Sweep]


@contextmanager
def open_sweep(
    plan: Plan, loaded: LoadedModel, out: str | PathLike[str], progress: bool | None
) -> Iterator[RunningSweep]:
    """Open a sweep's file, and sort it at the end.

    Args:
        plan: The calls.
        loaded: The service's model; the answers of another one are not mixed with its own.
        out: Path of the file.
        progress: Whether to show a bar; None shows it on a terminal if rich is installed.

    Raises:
        OtherSweep: The file has other pairs, parameters, or another origin.
    """
    tokenizer = {"tokenizer_digest": loaded.tokenizer_digest}
    origin = {**vars(loaded.model), **tokenizer, **vars(loaded.versions)}
    tasks = [Task(index, pair, call, origin) for index, (pair, call) in enumerate(plan)]
    path = Path(out)
    with closing(Ledger(path, [task.digest for task in tasks], origin)) as ledger:
        kept = ledger.answered
        left = [task for task in tasks if not ledger.is_answered(task.index)]

        def take(outcome: Entry | DeltawError) -> None:
            if isinstance(outcome, DeltawError):
                raise outcome
            ledger.write(outcome.index, outcome.text, outcome.answered)
            show(kept + ledger.written)

        def result() -> Sweep:
            return Sweep(path, len(tasks), ledger.answered, ledger.failed, kept)

        with progress_bar(len(tasks), kept, progress) as show:
            yield RunningSweep(left, take, result)


def read_sweep(path: str | PathLike[str]) -> Iterator[Line]:
    """Read the lines of a sweep's file, one at a time."""
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
