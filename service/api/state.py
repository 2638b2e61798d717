"""What a request finds on the application: the engine, the settings, the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from schemas.model import Limits, SelfCheck
from service.engine import Engine
from service.settings import Settings
from service.telemetry import Metrics


@dataclass
class State:
    """Made once by the composition root, and kept on `app.state`.

    Args:
        settings: How the service runs.
        engine: The resident model.
        metrics: What is counted.
        keys: Bearer keys that open the service; none: it is open.
        self_check: What the check at start found; None until it has run.
    """

    settings: Settings
    engine: Engine
    metrics: Metrics
    keys: tuple[str, ...]
    self_check: SelfCheck | None = None

    @property
    def unsound(self) -> str:
        """Why no number may be given out, where the self-check did not hold."""
        found = self.self_check
        if found is None:
            return "the equivalence check at start has not run"
        worst = "" if found.worst_relative_error is None else f", {found.worst_relative_error:.1e}"
        reason = f": {found.reason}" if found.reason else ""
        return f"the equivalence check at start says `{found.verdict}`{worst}{reason}"

    @property
    def limits(self) -> Limits:
        """What one request may bring, as it is shown and as it is enforced."""
        settings = self.settings
        return Limits(
            max_body_bytes=settings.max_body_bytes,
            max_prompts=settings.max_prompts,
            max_tokens_per_request=settings.max_tokens_per_request,
            max_response_bytes=settings.max_response_bytes,
            n_positions=self.engine.model.n_positions,
            queue_size=settings.queue_size,
            deadline_seconds=settings.deadline_seconds,
        )


def state_of(request: Request) -> State:
    """The application's state."""
    return cast(State, request.app.state.deltaw)


Found = Annotated[State, Depends(state_of)]
"""The state, as a handler asks for it."""
