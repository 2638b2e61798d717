"""A sweep: the same question about many pairs, answered as one JSON line for each pair."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from deltaw_client import resources
from deltaw_client.answers import Received
from deltaw_client.calls import Call, plain, problem_error
from deltaw_client.errors import DeltawError, OtherSweep, Timeout
from deltaw_client.problems import ProblemError
from deltaw_client.resources import Text
from schemas.common import adapter, write_answer

Pair = tuple[Text, Text] | Mapping[str, Any]
"""(context, query), or a mapping of a resource's fields."""
Resource = Literal["weight_updates", "equivalence_checks", "trajectories", "attributions"]
Origin = Mapping[str, Any]
"""The fields of the model and of the versions, which decide a sweep's numbers besides the call."""

CALLS: Mapping[Resource, Callable[..., Call[Any]]] = {
    name: getattr(resources, name) for name in get_args(Resource)
}
KINDS = {kind.__name__: kind for kind in Received.__subclasses__()}
"""Answer classes by a line's `kind`."""
FATAL = {"missing_key", "wrong_key", "unknown_host", "not_found", "method_not_allowed"}
"""Codes of the problems that every other pair would have too; they end the sweep."""


@dataclass(frozen=True)
class Entry:
    """A line to write, with its newline, and the index of its pair."""

    index: int
    text: bytes
    answered: bool


@dataclass(frozen=True)
class Task:
    """One pair of a sweep: its own fields, the call with all its fields, and the sweep's origin."""

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

    def failed(self, error: DeltawError) -> Entry:
        """Return an error's line, or raise the error if it ends the sweep."""
        if isinstance(error, ProblemError) and error.code not in FATAL:
            return self._entry(f'"problem": {write_answer(error.problem).decode()}', False)
        if isinstance(error, Timeout):
            return self._entry(f'"timeout": {json.dumps(str(error))}', False)
        raise error

    def _entry(self, more: str, answered: bool) -> Entry:
        head = {"index": self.index, "digest": self.digest, "origin": self.origin}
        head |= {"kind": self.call.answer.__name__, "pair": self.pair}
        text = f"{json.dumps(head, default=plain)[:-1]}, {more}}}\n"
        return Entry(self.index, text.encode(), answered)


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
    """Make the calls of a sweep. All pairs are read; their own fields replace the parameters.

    Raises:
        TypeError: The resource does not have such a field.
    """
    names = ("context", "query")
    own = [
        dict(pair if isinstance(pair, Mapping) else zip(names, pair, strict=True)) for pair in pairs
    ]
    return [(fields, CALLS[resource](**{**parameters, **fields})) for fields in own]


def differences(told: Origin, origin: Origin) -> str:
    """Name each field of two origins that differs; empty if none does."""
    return ", ".join(
        f"{name} {told.get(name, 'unknown')} (the service: {now})"
        for name, now in origin.items()
        if told.get(name, "unknown") != now
    )


def read_sweep(path: str | PathLike[str]) -> Iterator[Line]:
    """Read the lines of a sweep's file, one at a time."""
    with Path(path).open("rb") as file:
        for text in file:
            told = json.loads(text)
            answer: Received | None = None
            error: DeltawError | None = None
            if "answer" in told:
                kind = adapter(KINDS[told["kind"]])
                answer = kind.validate_json(json.dumps(told["answer"]), extra="ignore")
            elif "problem" in told:
                error = problem_error(json.dumps(told["problem"]))
            else:
                error = Timeout(told["timeout"])
            yield Line(told["index"], told["pair"], answer, error)
