"""Stages of a request and counts of its work, which its log line and its span report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import Scope

from service.engine import Timings

STAGES = ("queue", "tokenize", "forward", "compute", "serialize")
"""Stages of a request whose times the client gets, in their order."""


def count(scope: Scope, field: str, more: int) -> None:
    """Increase a count in the log line of a request."""
    scope[f"deltaw.{field}"] = scope.get(f"deltaw.{field}", 0) + more


def note_stage(scope: Scope, stage: str, began: float, seconds: float) -> None:
    """Add a part of a stage to the log line and the span of a request.

    Args:
        scope: Scope of the request.
        stage: Name of the stage.
        began: Monotonic time in seconds at which this part of the stage began.
        seconds: Seconds of this part.
    """
    stages: dict[str, tuple[float, float]] = scope.setdefault("deltaw.stages", {})
    first, total = stages.get(stage, (began, 0.0))
    stages[stage] = min(first, began), total + seconds


@contextmanager
def record_timings(scope: Scope, timings: Timings) -> Iterator[None]:
    """Add the engine's times and cached rows to a request's log line and span.

    If the question fails, only the times are added.
    """
    try:
        yield
        count(scope, "rows_cached", timings.cached_rows)
    finally:
        # Copied, because the question may still run after its client has left.
        for stage, began in timings.began.copy().items():
            note_stage(scope, stage, began, getattr(timings, stage))
