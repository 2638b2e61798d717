"""A progress bar on a terminal, where rich is installed (the extra `progress`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def progress_bar(total: int, done: int, shown: bool | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; what it gives takes the number that is done.

    Args:
        total: When it is full.
        done: Where it begins.
        shown: Whether there is one; None is on a terminal, where rich is installed.

    Raises:
        ModuleNotFoundError: It must be shown, and rich is not there.
    """
    if shown is None:
        shown = sys.stderr.isatty() and find_spec("rich") is not None
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=total, completed=done)
        yield lambda now: progress.update(bar, completed=now)
