"""The commands that ask a model: `check`, `updates`, `trajectory`, `capture`, `model`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from deltaw_client import Activations, AsyncDeltawClient, LoadedModel, problems
from deltaw_client.calls import Call
from deltaw_client.tensor_file import unpack
from schemas.activations import ActivationsRequest
from schemas.equivalence_checks import EquivalenceChecksRequest
from schemas.trajectories import TrajectoriesRequest
from schemas.weight_updates import WeightUpdatesRequest
from service.cli import tables
from service.cli.options import options, with_options
from service.cli.target import TARGET, Target

Fields = dict[str, Any]
"""Fields of a request that the command line gives."""


@with_options(fields=options(EquivalenceChecksRequest, context=None, query=None), target=TARGET)
def check(fields: Fields, target: Target) -> None:
    """Run the equivalence check. The exit code is 1 if it does not hold.

    Without --context and --query, report the self-check of every layer's block
    on a fixed prompt. A running service reports the one that it made at start.
    """
    if not fields:
        target.ask(
            _self_check,
            tables.of_self_check,
            as_text=json.dumps,
            exit_code=lambda found: int(found["verdict"] != "holds"),
        )
    if not {"context", "query"} <= fields.keys():
        raise typer.BadParameter("give --context and --query, or no option for the self-check")
    target.ask(
        lambda client: client.equivalence_checks(**fields),
        tables.of_checks,
        exit_code=lambda answer: int(not answer.holds),
    )


async def _self_check(client: AsyncDeltawClient) -> Mapping[str, Any]:
    try:
        try:
            answer = await client.model()
        except problems.SelfCheckFailed:
            # Only this problem's detail has the verdict and the worst error.
            answer = await client.make(Call(LoadedModel, "/readyz"))
        found: Mapping[str, Any] = json.loads(answer.content)["self_check"]
        return found
    except problems.SelfCheckFailed as error:
        return {"verdict": "fails", "reason": error.detail}


@with_options(
    fields=options(WeightUpdatesRequest, ("probe_queries", "encoding"), include=["next_tokens"]),
    target=TARGET,
)
def updates(fields: Fields, target: Target) -> None:
    """Summarise the implicit weight updates of each layer, and the likeliest next tokens."""
    asked = {"include": ["next_tokens"], **fields, "encoding": "json"}
    target.ask(lambda client: client.weight_updates(**asked), tables.of_updates)


@with_options(fields=options(TrajectoriesRequest), target=TARGET)
def trajectory(fields: Fields, target: Target) -> None:
    """Follow ‖ΔW‖ as the context is read, token by token."""
    target.ask(lambda client: client.trajectories(**fields), tables.of_trajectories)


@with_options(fields=options(ActivationsRequest, ("prompts", "encoding")), target=TARGET)
def capture(
    prompts: Annotated[list[str], typer.Argument(help="Texts; each is run by itself.")],
    out: Annotated[Path, typer.Option(help="Safetensors file to write.", dir_okay=False)],
    fields: Fields,
    target: Target,
) -> None:
    """Write activations to a safetensors file. --json prints the file's description."""
    if not out.parent.is_dir():
        raise typer.BadParameter(f"the folder {out.parent} does not exist")

    async def write(client: AsyncDeltawClient) -> Activations:
        answer = await client.activations(prompts, **fields)
        out.write_bytes(answer.content)
        return answer

    target.ask(
        write,
        lambda answer: tables.of_activations(answer, out),
        as_text=lambda answer: unpack(answer.content)[0],
    )


@with_options(target=TARGET)
def model(target: Target) -> None:
    """Describe the model: shape, hook points, self-check, and the limits of a request."""
    target.ask(lambda client: client.model(), tables.of_model)
