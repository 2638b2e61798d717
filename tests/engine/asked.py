"""Questions to ask an engine, and engines to ask."""

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
    """A question that reads the last row of one run."""
    (read,) = yield [Run(ids, range(len(ids)), {READ: [len(ids) - 1]})]
    tensor: torch.Tensor = read[READ]
    return tensor


def holding(begun: threading.Event, release: threading.Event) -> Question[str]:
    """A question that occupies the compute thread until `release` is set."""
    begun.set()
    assert release.wait(SECONDS)
    yield []
    return "released"


@contextmanager
def running(engine: Engine) -> Iterator[Engine]:
    """Start the engine, and close it at the end."""
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def sound(model: Model, **options: Any) -> Engine:
    """An engine with a loaded model whose self-check holds."""
    return Engine(lambda: model, lambda _model: True, **{"threads": 1, **options})


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, for at most 30 seconds."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


def in_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end in a new event loop."""
    asyncio.run(asyncio.wait_for(work, SECONDS))


async def occupied(engine: Engine) -> tuple[asyncio.Task[Any], threading.Event]:
    """Occupy the engine's thread with a question until the returned event is set."""
    begun, release = threading.Event(), threading.Event()
    task = asyncio.create_task(engine.ask(Plan(holding(begun, release)), SECONDS))
    await until(begun.is_set)
    return task, release


def raises(engine: Engine, kind: type[Exception]) -> bool:
    """Whether `engine.model` raises this kind of error."""
    try:
        engine.model
    except kind:
        return True
    except Loading:
        return False
    return False
