"""The command `deltaw` with its subcommands."""

from __future__ import annotations

import typer

from service.cli import adapters, commands, generation, serving, sweeping

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compute a context's effect on a language model as an update of its weights.",
    epilog="Exit codes: 0 success, and the check holds; 1 the check does not hold, or the service "
    "is not ready; 2 the command line or a setting is wrong; 3 there is no answer.",
)

for command in (
    serving.serve,
    commands.check,
    commands.updates,
    commands.trajectory,
    commands.capture,
    adapters.adapter,
    generation.generate,
    sweeping.sweep,
    commands.model,
    serving.healthcheck,
):
    app.command()(command)
