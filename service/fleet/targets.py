"""Targets: the models that the front can send requests to."""

from __future__ import annotations

from typing import Any, NamedTuple

from service.api.refusals import ProblemError
from service.settings import Settings


class Target(NamedTuple):
    """A model: its settings, the handle of its deployment, and its API keys."""

    settings: Settings
    handle: Any
    keys: tuple[str, ...]


def no_replica() -> ProblemError:
    """Return the problem for a model that has no running replica."""
    return ProblemError(
        "loading", "No replica of the model is running.", headers={"Retry-After": "1"}
    )
