"""Lifecycle of an engine in a process: the wait for its self-check, and its faults.

`deltaw serve` and the replicas of Ray Serve share this module.
"""

from __future__ import annotations

import asyncio
import gc

from service.api.state import State
from service.errors import SelfCheckFailed, sentence

POLL_SECONDS = 0.05


async def loaded(state: State) -> None:
    """Wait until the model is loaded and its self-check holds.

    Raises:
        SelfCheckFailed: The self-check did not hold. The message gives the service's reason.
        BaseException: The error that ended the load.
    """
    engine = state.engine
    while not engine.checked and engine.fatal is None:
        await asyncio.sleep(POLL_SECONDS)
    if engine.fatal is not None:
        raise engine.fatal
    if state.self_check is None or state.self_check.verdict != "holds":
        raise SelfCheckFailed(state.unsound)


def keep_start_objects() -> None:
    """Exclude the objects made so far from garbage collection, and turn the collection on.

    Objects made at start live as long as the process. To search them for garbage would stop every
    thread for 0.2 s each time.
    """
    gc.freeze()
    gc.enable()


def fault(state: State) -> str | None:
    """Return the reason why the engine has stopped answering requests; None while it works.

    The thread of a stuck computation can be neither ended nor waited for, so the process has to end
    and its requests are lost.
    """
    engine = state.engine
    if engine.fatal is not None:
        return sentence(engine.fatal)
    if engine.stuck_for > state.settings.stuck_seconds:
        return f"the computation has been stuck for {engine.stuck_for:.0f} s"
    return None
