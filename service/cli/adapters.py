"""`deltaw adapter`."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel

from deltaw_client import Adapter, AsyncDeltawClient
from schemas.adapters import AdapterRequest, StaticAdapterRequest, TokenAdapterRequest
from schemas.common import adapter as adapter_of
from service.cli.adapter_tables import PeftErrors, of_adapter
from service.cli.options import options_of_any, settings, with_options
from service.cli.target import TARGET, NoModel, Target, cannot_import, prepare

Kind = Literal["token", "static"]
REQUESTS: Mapping[str, type[BaseModel]] = {
    "token": TokenAdapterRequest,
    "static": StaticAdapterRequest,
}
ContextFile = Annotated[
    Path | None,
    typer.Option(help="File with the context, in place of --context. Its text is used unchanged."),
]


@with_options(
    fields=options_of_any(REQUESTS, ("kind",), context=None, query=None, queries=None),
    target=TARGET,
)
def adapter(
    *,
    fields: dict[str, Any],
    context_file: ContextFile = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the PEFT files.", file_okay=False)
    ] = None,
    verify_peft: Annotated[
        bool,
        typer.Option(
            "--verify-peft", help="Load the model and the adapter with PEFT, and compare logits."
        ),
    ] = False,
    target: Target,
) -> None:
    """Make a PEFT adapter from a context: exact for one --query, or fitted to many --queries.

    The service keeps the adapter. `deltaw generate --adapter ID` uses it.
    --verify-peft loads the same weights in this process. The exit code is 1 if PEFT's logits
    differ.
    """
    asked = with_context(fields, context_file)
    if "context" not in asked or ("query" in asked) == ("queries" in asked):
        raise typer.BadParameter("give a context, and either --query or --queries")
    kind: Kind = "token" if "query" in asked else "static"
    foreign = asked.keys() - REQUESTS[kind].model_fields.keys()
    if foreign:
        flag = f"--{min(foreign).replace('_', '-')}"
        raise typer.BadParameter(f"a {kind} adapter has no such option", param_hint=flag)

    async def make(client: AsyncDeltawClient) -> Made:
        answer = await client.adapters.create(kind=kind, **asked)
        if out is None and not verify_peft:
            return Made(answer)
        with TemporaryDirectory() as passing:
            folder = await client.adapters.download(answer.id, out or passing)
            if not verify_peft:
                return Made(answer)
            body = json.dumps({"kind": kind, **asked})
            return Made(answer, await asyncio.to_thread(_verified, target, answer, folder, body))

    target.ask(
        make,
        lambda made: of_adapter(made.answer, out, made.errors),
        as_text=lambda made: made.answer.content,
        exit_code=lambda made: int(made.errors is not None and not made.errors.hold),
    )


@dataclass(frozen=True)
class Made:
    """An adapter, and its errors in PEFT if they were asked for."""

    answer: Adapter
    errors: PeftErrors | None = None


def _verified(target: Target, answer: Adapter, folder: Path, body: str) -> PeftErrors:
    """Load the weights and the adapter with transformers and PEFT, and compare.

    Raises:
        NoModel: This machine lacks the weights, or a package is not installed.
    """
    prepare()
    try:
        from transformers.utils.logging import disable_progress_bar

        from service.adapters.verify import verify_peft
        from service.errors import ServiceError, sentence
    except ImportError as error:
        raise NoModel(cannot_import(error)) from error
    name, revision = answer.model.id, answer.model.revision
    if target.url is None:
        chosen = settings(**target.local_settings)
        name, revision = chosen.model, chosen.revision
    disable_progress_bar()
    request = adapter_of(AdapterRequest).validate_json(body).root
    try:
        found = verify_peft(name, revision, folder, request, answer.model.weights_digest)
    except ServiceError as error:
        raise NoModel(sentence(error)) from error
    except ModuleNotFoundError as error:
        raise NoModel(f"{error.name} is not installed: run `pip install {error.name}`") from error
    finally:
        gc.enable()
    return PeftErrors(found.loaded, found.merged, found.without)


def with_context(fields: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """Return the fields, with the context of the file if one is given.

    Raises:
        typer.BadParameter: The file cannot be read, or there are two contexts.
    """
    if file is None:
        return fields
    if "context" in fields:
        raise typer.BadParameter("give --context or --context-file, not both")
    try:
        # `newline=""` keeps each line end as it is.
        with file.open(encoding="utf-8", newline="") as text:
            return {**fields, "context": text.read()}
    except (OSError, ValueError) as error:
        detail = f"{file} cannot be read ({type(error).__name__}); give a text in UTF-8"
        raise typer.BadParameter(detail, param_hint="--context-file") from error
