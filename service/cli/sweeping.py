"""`deltaw sweep`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from pydantic import BaseModel

from deltaw_client import Sweep
from deltaw_client.lines import CALLS, Pair, read_items
from deltaw_client.sweep import Resource
from schemas.attributions import AttributionsRequest
from schemas.equivalence_checks import EquivalenceChecksRequest
from schemas.trajectories import TrajectoriesRequest
from schemas.weight_updates import WeightUpdatesRequest
from service.cli import tables
from service.cli.options import options_of_any, with_options
from service.cli.target import NO_ANSWER, TARGET, Target

REQUESTS: Mapping[str, type[BaseModel]] = {
    "weight_updates": WeightUpdatesRequest,
    "equivalence_checks": EquivalenceChecksRequest,
    "trajectories": TrajectoriesRequest,
    "attributions": AttributionsRequest,
}


@with_options(
    fields=options_of_any(REQUESTS, ("probe_queries", "encoding"), context=None, query=None),
    target=TARGET,
)
def sweep(
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(
            help='JSON lines, each {"context": …, "query": …} or ["context", "query"]; - reads '
            "standard input. Further fields of a line replace the options."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write, or to resume.", dir_okay=False)],
    fields: dict[str, Any],
    target: Target,
    resource: Annotated[Resource, typer.Option(help="What to ask about each pair.")] = (
        "weight_updates"
    ),
    concurrency: Annotated[
        int, typer.Option(help="Maximum concurrent requests, of many pairs each.", min=1)
    ] = 2,
) -> None:
    """Ask the same about many pairs, and write a JSON line for each.

    If the file exists, keep its answers and ask the failed pairs again.
    --deadline is the time between two answers.
    """
    if not out.parent.is_dir():
        raise typer.BadParameter(f"the folder {out.parent} does not exist")
    foreign = fields.keys() - inspect.signature(CALLS[resource]).parameters.keys()
    if foreign:
        flag = f"--{min(foreign).replace('_', '-')}"
        raise typer.BadParameter(f"{resource} has no such option", param_hint=flag)
    pairs = read_pairs(file, resource, fields)
    target.ask(
        lambda client: client.sweep(
            pairs, out=out, resource=resource, concurrency=concurrency, **fields
        ),
        tables.of_sweep,
        as_text=lambda swept: json.dumps(asdict(swept), default=str),
        exit_code=_exit_code,
    )


def read_pairs(file: IO[bytes], resource: Resource, fields: dict[str, Any]) -> list[Pair]:
    """Read the pairs of a file of JSON lines. Blank lines are skipped.

    Raises:
        typer.BadParameter: A line is no pair, or has a field that the resource does not have.
    """
    pairs: list[Pair] = []
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            pair: Any = json.loads(text)
            if type(pair) not in (dict, list):
                raise ValueError("give an object or a list of context and query")
            # The call is made only to check the fields.
            list(read_items([pair], resource, fields))
        except (ValueError, TypeError) as error:
            said = str(error).replace(f"{resource}()", resource)
            raise typer.BadParameter(f"line {number}: {said}", param_hint="FILE") from error
        pairs.append(pair)
    return pairs


def _exit_code(swept: Sweep) -> int:
    """Return 3 if a pair has no answer, 1 if a check does not hold."""
    if swept.failed:
        return NO_ANSWER
    return int(any(not getattr(line.answer, "holds", True) for line in swept))
