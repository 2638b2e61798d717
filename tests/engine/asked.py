"""Questions for an engine, and an engine for questions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from service.engine import Engine, Model, Plan, Question, Run, Site
from service.errors import Loading

READ = Site(1, "resid_post")
SECONDS = 30.0


def reading(*ids: int) -> Question[torch.Tensor]:
    """Reads the last row of one run."""
    (read,) = yield [Run(ids, range(len(ids)), {READ: [len(ids) - 1]})]
    tensor: torch.Tensor = read[READ]
    return tensor


def holding(begun: threading.Event, release: threading.Event) -> Question[str]:
    """Keeps the compute thread until it is released."""
    begun.set()
    assert release.wait(SECONDS)
    yield []
    return "released"


@contextmanager
def running(engine: Engine) -> Iterator[Engine]:
    """The engine started, and closed at the end."""
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def sound(model: Model, **options: Any) -> Engine:
    """An engine of a loaded model whose check holds."""
    return Engine(lambda: model, lambda _model: True, **{"threads": 1, **options})


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the compute thread to get there."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


def in_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end in an event loop of its own."""
    asyncio.run(asyncio.wait_for(work, SECONDS))


async def occupied(engine: Engine) -> tuple[asyncio.Task[Any], threading.Event]:
    """Keep the engine's thread with a question, until the event is set."""
    begun, release = threading.Event(), threading.Event()
    task = asyncio.create_task(engine.ask(Plan(holding(begun, release)), SECONDS))
    await until(begun.is_set)
    return task, release


def raises(engine: Engine, kind: type[Exception]) -> bool:
    """Whether asking for the model raises this."""
    try:
        engine.model
    except kind:
        return True
    except Loading:
        return False
    return False
