"""A sweep: the same question about many pairs, answered as one JSON line for each pair."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from deltaw_client.answers import Received
from deltaw_client.calls import plain, problem_error
from deltaw_client.errors import DeltawError, OtherSweep, Timeout
from deltaw_client.lines import Item, Line
from deltaw_client.problems import ProblemError
from schemas.common import adapter, write_answer

Resource = Literal["weight_updates", "equivalence_checks", "trajectories", "attributions"]
Origin = Mapping[str, Any]
"""The fields of the model and of the versions, which decide a sweep's numbers besides the call."""

KINDS = {kind.__name__: kind for kind in Received.__subclasses__()}
"""Answer classes by a line's `kind`."""


def digest(item: Item) -> str:
    """Return the SHA-256 of a whole call, which identifies the pair and its parameters."""
    asked = [item.call.path, item.call.fields]
    text = json.dumps(asked, default=plain, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def write_line(item: Item, identity: str, origin: Origin, line: Line) -> bytes:
    """Write a pair's line of the file, with tensors in base64, bit by bit.

    Args:
        item: The pair.
        identity: Digest of its call.
        origin: Origin of the sweep.
        line: Its answer or its error.

    Raises:
        OtherSweep: The service exchanged its model since the sweep began.
    """
    head = {"index": item.index, "digest": identity, "origin": origin}
    head |= {"kind": item.call.answer.__name__, "pair": item.pair}
    if isinstance(line.error, ProblemError):
        more = f'"problem": {write_answer(line.error.problem).decode()}'
    elif line.error is not None:
        more = f'"timeout": {json.dumps(str(line.error))}'
    else:
        answer = line.answer
        changed = differences(origin, {**origin, **vars(answer.model)})
        if changed:
            raise OtherSweep(f"the model changed during the sweep: {changed}; choose another file")
        head |= {"request_id": answer.request_id, "server_timing": answer.server_timing}
        more = f'"answer": {write_answer(answer).decode()}'
    return f"{json.dumps(head, default=plain)[:-1]}, {more}}}\n".encode()


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
                error = problem_error(told["problem"])
            else:
                error = Timeout(told["timeout"])
            yield Line(told["index"], told["pair"], answer, error)
