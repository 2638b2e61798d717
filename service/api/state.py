"""The state of the application: the engine, the settings, the metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from schemas.adapters import Adapter
from schemas.model import Limits, SelfCheck
from service.adapters.store import Store
from service.api.sharing import Sharing
from service.engine import Engine
from service.settings import Settings
from service.telemetry import Metrics


@dataclass
class State:
    """Created once by the composition root, and kept on `app.state`.

    Args:
        settings: The service's settings.
        engine: The engine with the resident model.
        metrics: The service's metrics.
        adapters: The adapters on the disk.
        keys: Accepted Bearer keys; empty: no key is needed.
        making: Adapters that are being made, by their ids.
        self_check: Result of the check at start; None until it has run.
    """

    settings: Settings
    engine: Engine
    metrics: Metrics
    adapters: Store
    keys: tuple[str, ...]
    making: Sharing[Adapter] = field(default_factory=Sharing)
    self_check: SelfCheck | None = None

    @property
    def unsound(self) -> str:
        """The reason why the service returns no numbers, if the self-check did not hold."""
        found = self.self_check
        if found is None:
            return "The equivalence check at start has not run."
        error = found.worst_relative_error
        worst = "" if error is None else f" with a relative error of {error:.1e}"
        reason = f": {found.reason}" if found.reason else "."
        return f"The equivalence check at start ended with `{found.verdict}`{worst}{reason}"

    @property
    def limits(self) -> Limits:
        """The limits of one request, as they are shown and enforced."""
        settings = self.settings
        return Limits(
            max_body_bytes=settings.max_body_bytes,
            max_lines=settings.max_lines,
            max_ndjson_bytes=settings.max_ndjson_bytes,
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


async def _found(request: Request) -> State:
    # FastAPI calls a function that is not async in another thread, which takes 0.3 ms.
    return state_of(request)


Found = Annotated[State, Depends(_found)]
"""The state as a dependency of a handler."""
