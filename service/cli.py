"""The command: `deltaw serve`, `deltaw check`, `deltaw healthcheck`.

`OMP_WAIT_POLICY` must be in the environment before torch is imported, so what needs torch is
imported inside the commands.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import httpx
import typer
from pydantic import ValidationError

from service.settings import Settings, read_settings
from service.telemetry import configure_logs

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="What a context does to a language model, as an update of its weights.",
)


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for each setting, called with the settings that they make."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    flags = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, typer.Option(help=field.description)],
        )
        for name, field in Settings.model_fields.items()
    ]

    def with_flags(**values: Any) -> None:
        given = {name: values.pop(name) for name in Settings.model_fields}
        command(_settings({n: v for n, v in given.items() if v is not None}), **values)

    with_flags.__name__, with_flags.__doc__ = command.__name__, command.__doc__
    with_flags.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    with_flags.__annotations__ = {p.name: p.annotation for p in (*own, *flags)}
    return with_flags


def _settings(flags: dict[str, str]) -> Settings:
    """The settings, or one sentence for each mistake in them."""
    try:
        return read_settings(**flags)
    except ValidationError as error:
        for mistake in error.errors():
            name = "".join(str(step) for step in mistake["loc"][:1])
            said = mistake["msg"].removeprefix("Value error, ")
            typer.echo(f"deltaw: {name + ': ' if name else ''}{said}", err=True)
    except (ValueError, OSError) as error:
        typer.echo(f"deltaw: {error}", err=True)
    raise typer.Exit(2)


def _prepare() -> None:
    """What torch and the hub's client read when they are imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _serve(
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
    _prepare()
    from service.server import serve

    configure_logs(settings.log_format)
    raise typer.Exit(serve(settings))


def _check(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="print the check as JSON")] = False,
) -> None:
    """Run the equivalence check of every layer in this process; exit code 1 where it fails."""
    _prepare()
    import torch

    from service.analysis.self_check import self_check
    from service.engine import drive, load
    from service.engine.cores import available_cores
    from service.errors import CannotLoad

    torch.set_num_threads(settings.threads or available_cores())
    try:
        model = load(
            settings.model,
            revision=settings.revision,
            device=settings.device,
            dtype=settings.dtype,
        )
    except CannotLoad as error:
        typer.echo(f"deltaw: {error.detail}", err=True)
        raise typer.Exit(1) from error
    found = drive(model, self_check(model))
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        for name, value in asdict(found).items():
            if value is not None:
                typer.echo(
                    f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}"
                )
    raise typer.Exit(int(found.verdict != "holds"))


app.command("serve")(_with_settings(_serve))
app.command("check")(_with_settings(_check))


@app.command()
def healthcheck(
    url: Annotated[
        str | None, typer.Option(help="of the service; by default the configured host and port")
    ] = None,
) -> None:
    """Ask a running service whether it is ready; exit code 1 where it is not."""
    if url is None:
        url = _settings({}).url
    try:
        answer = httpx.get(f"{url}/readyz", timeout=5.0, trust_env=False)
    except httpx.HTTPError as error:
        typer.echo(f"deltaw: {type(error).__name__}", err=True)
        raise typer.Exit(1) from error
    typer.echo(answer.text)
    raise typer.Exit(int(not answer.is_success))


if __name__ == "__main__":
    app()
