"""The commands, by their names."""

from __future__ import annotations

import typer

from service.cli import questions, serving
from service.cli.options import expanded, with_settings
from service.cli.place import asks

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="What a context does to a language model, as an update of its weights.",
    epilog="Exit codes: 0 done, and what was checked holds; 1 it does not hold, or the service is "
    "not ready; 2 the command was not understood; 3 there is no answer.",
)

app.command()(with_settings(serving.serve))
for question in (
    questions.check,
    questions.updates,
    questions.trajectory,
    questions.capture,
    questions.model,
):
    app.command()(expanded(asks(question)))
app.command()(serving.healthcheck)
