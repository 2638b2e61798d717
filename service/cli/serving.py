"""`deltaw serve` and `deltaw healthcheck`."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import httpx
import typer

from service.cli.options import settings as resolved
from service.cli.place import NO_ANSWER, NoModel, prepare
from service.settings import Settings


def serve(
    settings: Settings,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="print the resolved settings and stop")
    ] = False,
) -> None:
    """Keep the model resident and serve it."""
    if check_config:
        typer.echo(settings.model_dump_json(indent=2))
        return
    # The first process of a container has no default action for it, and torch takes seconds.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    prepare()
    try:
        from service.server import serve
        from service.telemetry import configure_logs
    except ModuleNotFoundError as error:
        typer.echo(f"deltaw: {NoModel.without(error)}", err=True)
        raise typer.Exit(NO_ANSWER) from error

    configure_logs(settings.log_format)
    raise typer.Exit(serve(settings))


def healthcheck(
    url: Annotated[
        str | None, typer.Option(help="of the service; by default the configured host and port")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the service's answer")] = False,
) -> None:
    """Ask a running service whether it is ready; exit code 1 where it is not."""
    if url is None:
        url = resolved({}).url
    try:
        answer = httpx.get(f"{url.rstrip('/')}/readyz", timeout=5.0, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        typer.echo(f"deltaw: {type(error).__name__}", err=True)
        raise typer.Exit(1) from error
    typer.echo(answer.text)
    raise typer.Exit(int(not answer.is_success))
