"""NDJSON: one body per line, one answer line each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from pydantic import Field

from schemas.common import UNSET, Answer, Asked
from schemas.problems import Problem

Body = TypeVar("Body")
"""The answer of the resource."""


@dataclass(frozen=True)
class Line(Answer, Generic[Body]):
    """One line of an `application/x-ndjson` answer: the answer to one line of the request.

    A line whose `index` is null ends the answer early. Its body is the problem of the whole
    request, and lines of the request without an answer were not computed.
    """

    index: int | None
    """Index of the line in the request, from 0. Blank lines are not counted."""
    status: int
    """HTTP status that the line would have as its own request."""
    body: Body | Problem
    """The answer, or a problem if the status is not 200."""
    request_id: Annotated[
        Asked[str], Field(description="`{X-Request-ID}-{index}`. Absent where `index` is null.")
    ] = UNSET
    timings_ms: Annotated[
        Asked[Mapping[str, float]],
        Field(
            description="Milliseconds of `queue`, `tokenize`, `forward`, `compute`, `serialize`. "
            "Work that several lines share counts in full for each. Absent where `index` is null."
        ),
    ] = UNSET
