"""The commands that ask: `check`, `updates`, `trajectory`, `capture`, `model`.

Each reads its options into a question, which is asked once there is somebody to answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from deltaw_client.answers import Received
from deltaw_client.tensor_file import unpack
from service.cli import chart, tables
from service.cli.options import Relation, listed, spans, words
from service.cli.place import Asking, Question

Context = Annotated[str, typer.Option(help="what is read before the query")]
Query = Annotated[str, typer.Option(help="tokenised by itself; often begins with a space")]


def check(
    *,
    context: Annotated[str | None, typer.Option(help="what is read before the query")] = None,
    query: Annotated[str | None, typer.Option(help="without both: the self-check")] = None,
    relation: Relation,
    scope: Annotated[
        str | None, typer.Option(help="`projection`, `block` (default) or `model`")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="`model` (default), `float32` or `float64`")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="relative error up to which it holds; by default derived")
    ] = None,
    apply: Annotated[
        str | None, typer.Option(help="`materialized` (default) or `factored`")
    ] = None,
    joint: Annotated[
        bool | None, typer.Option("--joint", help="one patch of both weights for all positions")
    ] = None,
    controls: Annotated[
        bool | None, typer.Option(help="run what must be far worse, as by default")
    ] = None,
) -> Question:
    """Run the equivalence check; exit code 1 where it does not hold.

    Of a context and a query; without them the self-check, that is of every layer on a fixed
    prompt. Of that a running service tells what it found when it started.
    """
    fields = relation.fields | _given(
        scope=scope,
        precision=precision,
        tolerance=tolerance,
        apply=apply,
        joint=joint,
        controls=controls,
    )
    if (context is None) != (query is None) or (context is None and fields):
        raise typer.BadParameter("give --context and --query; without any option, the self-check")

    async def ask(asking: Asking) -> int:
        if context is None or query is None:
            found = await asking.self_check()
            _show(asking, json.dumps(found), tables.of_self_check(found))
            return int(found["verdict"] != "holds")
        answer = await asking.client.equivalence_checks(context, query, **fields)
        _show(asking, answer, tables.of_checks(answer))
        return int(not answer.holds)

    return ask


def updates(
    context: Context,
    query: Query,
    relation: Relation,
    include: Annotated[
        str, typer.Option(help="any of next_tokens,factors,bias,split; the last three for --json")
    ] = "next_tokens",
) -> Question:
    """Summarise the implicit weight updates: how far each layer's weight would have to go."""
    fields = relation.fields | {"include": words(include), "encoding": "json"}

    async def ask(asking: Asking) -> int:
        answer = await asking.client.weight_updates(context, query, **fields)
        _show(asking, answer, tables.of_updates(answer))
        return 0

    return ask


def trajectory(
    context: Context,
    query: Query,
    relation: Relation,
    spans_text: Annotated[
        str | None,
        typer.Option("--spans", help="0:8,8:18 of context tokens; by default each by itself"),
    ] = None,
) -> Question:
    """Draw how far the weights have gone after each token of the context."""
    fields = relation.fields | _given(spans=spans_text and spans(spans_text))

    async def ask(asking: Asking) -> int:
        answer = await asking.client.trajectories(context, query, **fields)
        _show(asking, answer, chart.of_trajectories(answer))
        return 0

    return ask


def capture(
    prompts: Annotated[list[str], typer.Argument(help="each is run by itself")],
    out: Annotated[Path, typer.Option(help="the safetensors file to write", dir_okay=False)],
    layers: Annotated[str, typer.Option(help="`all`, or 0,3,-1")] = "all",
    hook_points: Annotated[
        str, typer.Option(help="with commas; `deltaw model` names them")
    ] = "mlp_in",
    positions: Annotated[str, typer.Option(help="`last`, `all`, or 0,1")] = "last",
    reduce: Annotated[str, typer.Option(help="`none`, `norm` or `mean`")] = "none",
) -> Question:
    """Write activations to a safetensors file; `--json` prints what it says of them."""
    if not out.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {out.parent}")
    fields: dict[str, Any] = {
        "layers": listed(layers),
        "hook_points": words(hook_points),
        "positions": listed(positions),
        "reduce": reduce,
    }

    async def ask(asking: Asking) -> int:
        answer = await asking.client.activations(prompts, **fields)
        out.write_bytes(answer.content)
        said, _ = unpack(answer.content)
        _show(asking, said, tables.of_activations(answer, out))
        return 0

    return ask


def model() -> Question:
    """Say what is loaded, where its hook points are, and what one request may bring."""

    async def ask(asking: Asking) -> int:
        answer = await asking.client.model()
        _show(asking, answer, tables.of_model(answer))
        return 0

    return ask


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _show(asking: Asking, said: Received | str, table: RenderableType) -> None:
    """As the service gave it, or as a table."""
    if not asking.as_json:
        Console().print(table)
    else:
        typer.echo(said if isinstance(said, str) else said.content)
