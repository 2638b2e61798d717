"""A progress bar on a terminal, if rich is installed (extra `progress`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def progress_bar(total: int, done: int, shown: bool | None) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error; yield a function to call for each finished item.

    Args:
        total: Number of items.
        done: Number of items finished before the start.
        shown: Whether to show the bar; None shows it on a terminal if rich is installed.

    Raises:
        ModuleNotFoundError: `shown` is True and rich is not installed.
    """
    if shown is None:
        shown = sys.stderr.isatty() and find_spec("rich") is not None
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=total, completed=done)
        yield lambda: progress.advance(bar)
