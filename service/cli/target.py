"""The service that a command asks: a running one, or the same application in this process.

Both are asked with the client; only the transport differs. torch reads `OMP_WAIT_POLICY` when it is
imported, so it is imported only when a model is loaded.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console, RenderableType

from deltaw_client import AsyncDeltawClient, DeltawError
from service.cli.options import Group, settings
from service.cli.transport import InProcessTransport
from service.settings import PREFIX, Settings

A = TypeVar("A")

API_KEY = f"{PREFIX}API_KEY"
NO_ANSWER = 3
POLL_SECONDS = 0.01
INSTALL = "{} is not installed: install deltaw[server], or give --url"
MODEL_SETTINGS = ("model", "revision", "device", "dtype", "threads")


class NoModel(Exception):
    """The model cannot be loaded in this process."""


def _local(name: str) -> Any:
    return typer.Option(help=f"Only without --url. {Settings.model_fields[name].description}")


@dataclass(frozen=True)
class Target:
    """The options that all asking commands share, with their help."""

    url: Annotated[str | None, typer.Option(help="Address of a running service.")] = None
    model: Annotated[str | None, _local("model")] = None
    revision: Annotated[str | None, _local("revision")] = None
    device: Annotated[str | None, _local("device")] = None
    dtype: Annotated[str | None, _local("dtype")] = None
    threads: Annotated[int | None, _local("threads")] = None
    api_key: Annotated[
        str | None, typer.Option(help="Key of the service.", envvar=API_KEY, show_envvar=True)
    ] = None
    deadline: Annotated[
        float, typer.Option(help="Seconds until the answer must have arrived.", min=0)
    ] = 60.0
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answer as the service sends it.")
    ] = False

    def __post_init__(self) -> None:
        if self.url is None and self.api_key and not os.environ.get(API_KEY):
            raise typer.BadParameter("--api-key needs --url: a model in this process has no key")
        if self.url is not None and self.local_settings:
            names = " and ".join(f"--{name}" for name in self.local_settings)
            raise typer.BadParameter(f"give --url, or {names} to load a model in this process")

    @property
    def local_settings(self) -> dict[str, Any]:
        """Settings of a model in this process that were given."""
        flags = {name: getattr(self, name) for name in MODEL_SETTINGS}
        return {name: value for name, value in flags.items() if value is not None}

    def ask(
        self,
        call: Callable[[AsyncDeltawClient], Awaitable[A]],
        table: Callable[[A], RenderableType],
        *,
        as_text: Callable[[A], str | bytes] = attrgetter("content"),
        exit_code: Callable[[A], int] = lambda _: 0,
    ) -> None:
        """Make a call, print its answer, and end the command.

        Args:
            call: Makes the call with a client.
            table: Lays the answer out as a table.
            as_text: Converts the answer to what `--json` prints.
            exit_code: The exit code that the answer means.
        """
        try:
            answer = asyncio.run(self._answer(call))
        except (DeltawError, NoModel, OSError) as error:
            typer.echo(f"deltaw: {error}", err=True)
            raise typer.Exit(NO_ANSWER) from error
        if self.as_json:
            typer.echo(as_text(answer))
        else:
            Console().print(table(answer))
        raise typer.Exit(exit_code(answer))

    async def _answer(self, call: Callable[[AsyncDeltawClient], Awaitable[A]]) -> A:
        async with AsyncExitStack() as stack:
            url, how = self.url, dict[str, Any](api_key=self.api_key)
            if url is None:
                # `--api-key` has an environment variable that is no setting of the service.
                os.environ.pop(API_KEY, None)
                resident = resident_app(settings(**self.local_settings), self.deadline)
                url, transport = "http://localhost", await stack.enter_async_context(resident)
                how = {"retries": 0, "transport": transport}
            client = AsyncDeltawClient(url, deadline_seconds=self.deadline, **how)
            return await call(await stack.enter_async_context(client))


TARGET: Group = (Target, [*inspect.signature(Target, eval_str=True).parameters.values()])


def cannot_import(error: Exception) -> str:
    """Say why the service's libraries cannot be imported, and what to do."""
    if isinstance(error, ModuleNotFoundError):
        return INSTALL.format(error.name)
    said = f"{type(error).__name__}: {error}"
    return f"the libraries cannot be imported ({said}): correct the environment variable for it"


def prepare() -> None:
    """Set the variables that torch and huggingface_hub read when they are imported.

    This also stops garbage collection until the model is loaded. Imports make a million objects
    that live as long as the process; collecting them took a quarter of the start.
    """
    gc.disable()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@asynccontextmanager
async def resident_app(chosen: Settings, deadline: float) -> AsyncIterator[InProcessTransport]:
    """Load the model into the application in this process, without a key and with a quiet log.

    Raises:
        NoModel: The model cannot be loaded.
    """
    prepare()
    try:
        import structlog

        from service.errors import sentence
        from service.main import create_app
    except Exception as error:
        raise NoModel(cannot_import(error)) from error

    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    opened = {"api_keys": (), "api_keys_file": None, "deadline_seconds": deadline}
    app = create_app(chosen.model_copy(update=opened))
    engine = app.state.deltaw.engine
    try:
        async with app.router.lifespan_context(app):
            while not engine.checked and engine.fatal is None:
                await asyncio.sleep(POLL_SECONDS)
            gc.enable()
            if engine.fatal is not None:
                # An exit code of 1 would say that a check does not hold.
                raise NoModel(sentence(engine.fatal)) from engine.fatal
            yield InProcessTransport(app)
    finally:
        gc.enable()
        structlog.configure(**before)
