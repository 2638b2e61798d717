"""Where a question is asked: of a service that runs, or of the same application in this process.

Either way by the one client; only what carries its requests differs. `OMP_WAIT_POLICY` must be in
the environment before torch is imported, so what needs torch is imported where a model is loaded.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import typer

from deltaw_client import AsyncDeltawClient, DeltawError, problems
from schemas.common import write_answer
from schemas.model import SelfCheck
from service.cli.options import settings
from service.settings import PREFIX, Settings

API_KEY = f"{PREFIX}API_KEY"
NO_ANSWER = 3
POLL_SECONDS = 0.01
HERE = "http://localhost"
"""What the application in this process is called: a host that it knows."""


class NoModel(Exception):
    """The model cannot be resident in this process."""

    @classmethod
    def without(cls, error: ModuleNotFoundError) -> NoModel:
        """What is said where the service is not installed."""
        return cls(f"{error.name} is not installed: install deltaw[server], or give --url")


@dataclass(frozen=True)
class Place:
    """Where a question is asked, and how its answer is shown.

    Args:
        url: Of a service that runs; None is this process.
        model: What is resident in this process; the next four are its settings.
        revision: Of the model.
        device: Of the model.
        dtype: Of the model.
        threads: CPU threads.
        api_key: Of the service.
        deadline: Seconds.
        as_json: Whether the answer is printed as the service gives it.
    """

    url: Annotated[
        str | None, typer.Option(help="ask the service that runs there", show_default=False)
    ] = None
    model: Annotated[
        str | None,
        typer.Option(help="load it in this process: `bundled`, a hub id or a folder; the default"),
    ] = None
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of a hub id")] = None
    device: Annotated[str | None, typer.Option(help="in this process: `auto`, `cpu`, `cuda`")] = (
        None
    )
    dtype: Annotated[str | None, typer.Option(help="in this process: of the weights")] = None
    threads: Annotated[str | None, typer.Option(help="in this process: CPU threads")] = None
    api_key: Annotated[
        str | None, typer.Option(help="of the service", envvar=API_KEY, show_envvar=True)
    ] = None
    deadline: Annotated[float, typer.Option(help="seconds until an answer has to be there")] = 60.0
    as_json: Annotated[
        bool, typer.Option("--json", help="print the answer as the service gives it")
    ] = False

    @property
    def flags(self) -> dict[str, str | None]:
        """Settings of a model in this process."""
        names = ("model", "revision", "device", "dtype", "threads")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Asking:
    """A question's way to its answer.

    Args:
        client: Of the service, or of the application in this process.
        as_json: Whether the answer is printed as the service gives it.
        found: What the self-check found, in this process.
    """

    client: AsyncDeltawClient
    as_json: bool
    found: Mapping[str, Any] | None

    async def self_check(self) -> Mapping[str, Any]:
        """What the check at start found."""
        if self.found is not None:
            return self.found
        try:
            return told((await self.client.model()).self_check)
        except problems.SelfCheckFailed as error:
            return {"verdict": "fails", "reason": error.detail}


Question = Callable[[Asking], Awaitable[int]]
"""What a command makes of its options: asks, shows, and gives the exit code."""


def asks(command: Callable[..., Question]) -> Callable[..., None]:
    """The command with a `Place`; its options are read before any model is loaded."""

    def asked(place: Place, **values: Any) -> None:
        if place.url is not None and any(flag is not None for flag in place.flags.values()):
            raise typer.BadParameter("give --url, or what is loaded in this process")
        question = command(**values)
        try:
            code = asyncio.run(_asked(question, place))
        except (DeltawError, NoModel, httpx.InvalidURL, OSError, UnicodeEncodeError) as error:
            typer.echo(f"deltaw: {error}", err=True)
            raise typer.Exit(NO_ANSWER) from error
        raise typer.Exit(code)

    own = inspect.signature(command, eval_str=True).parameters.values()
    place = inspect.Parameter("place", inspect.Parameter.KEYWORD_ONLY, annotation=Place)
    options = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in own]
    asked.__name__, asked.__doc__ = command.__name__, command.__doc__
    asked.__signature__ = inspect.Signature([*options, place])  # type: ignore[attr-defined]
    return asked


async def _asked(question: Question, place: Place) -> int:
    if place.url is not None:
        async with AsyncDeltawClient(
            place.url, api_key=place.api_key, deadline_seconds=place.deadline
        ) as client:
            return await question(Asking(client, place.as_json, None))
    # This command's own option, and no setting of the service.
    os.environ.pop(API_KEY, None)
    async with (
        resident(settings(place.flags), place.deadline) as (transport, found),
        AsyncDeltawClient(
            HERE, deadline_seconds=place.deadline, retries=0, transport=transport
        ) as client,
    ):
        return await question(Asking(client, place.as_json, found))


def told(found: SelfCheck) -> Mapping[str, Any]:
    """The result of a self-check as the service writes it."""
    fields: Mapping[str, Any] = json.loads(write_answer(found))
    return fields


def prepare() -> None:
    """What torch and the hub's client read when they are imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@asynccontextmanager
async def resident(
    chosen: Settings, deadline: float
) -> AsyncIterator[tuple[httpx.ASGITransport, Mapping[str, Any]]]:
    """The application in this process, and what its self-check found; no key, a quiet log.

    Raises:
        NoModel: It cannot be loaded.
    """
    prepare()
    try:
        import structlog

        from service.errors import ServiceError
        from service.main import create_app
    except ModuleNotFoundError as error:
        raise NoModel.without(error) from error

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
            if isinstance(engine.fatal, ServiceError):
                raise NoModel(engine.fatal.detail) from engine.fatal
            if engine.fatal is not None:
                # An exit code of 1 would say that a check does not hold.
                raise NoModel(f"{type(engine.fatal).__name__}: {engine.fatal}") from engine.fatal
            yield httpx.ASGITransport(app), told(app.state.deltaw.self_check)
    finally:
        structlog.configure(**before)
