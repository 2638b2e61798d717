"""`deltaw serve` and `deltaw healthcheck`."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import httpx
import typer

from service.cli.options import options, with_options
from service.cli.options import settings as read
from service.cli.target import NO_ANSWER, cannot_import, prepare
from service.settings import Settings


@with_options(settings=(read, options(Settings)[1]))
def serve(
    settings: Settings,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Print the resolved settings and stop.")
    ] = False,
) -> None:
    """Load the model and serve it.

    A flag overrides its environment variable (DELTAW_PORT for --port).
    The variable overrides the file .env, which overrides the default.
    """
    if check_config:
        typer.echo(settings.model_dump_json(indent=2))
        return
    # The first process of a container ignores SIGTERM by default, and importing torch is slow.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    prepare()
    try:
        from service.server import serve
        from service.telemetry import configure_logs
    except Exception as error:
        typer.echo(f"deltaw: {cannot_import(error)}", err=True)
        raise typer.Exit(NO_ANSWER) from error

    configure_logs(settings.log_format)
    raise typer.Exit(serve(settings))


def healthcheck(
    url: Annotated[
        str | None,
        typer.Option(help="Address of the service; by default the configured host and port."),
    ] = None,
) -> None:
    """Ask a running service whether it is ready. The exit code is 1 if it is not."""
    if url is None:
        url = read().url
    try:
        answer = httpx.get(f"{url.rstrip('/')}/readyz", timeout=5.0, trust_env=False)
    # httpx and the name resolver refuse an address with any of these.
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        typer.echo(f"deltaw: {type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(answer.text)
    raise typer.Exit(int(not answer.is_success))
