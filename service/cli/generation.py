"""`deltaw generate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from deltaw_client import UNSET, AsyncDeltawClient, Completion
from schemas.completions import AdapterPatch, CompletionRequest, RecomputedPatch
from service.cli.adapters import ContextFile, with_context
from service.cli.options import options, with_options
from service.cli.tables import Cell, of_model_summary, table
from service.cli.target import TARGET, Target

SHOWN = ("max_tokens", "temperature", "top_p", "seed", "stop", "echo", "agreement")
"""Fields of a completion request that are options of the command."""
HIDDEN = tuple(name for name in CompletionRequest.model_fields if name not in SHOWN)
UNPRINTABLE = dict.fromkeys((*range(32), *range(127, 160)), "�")
PRINTED = {code: sign for code, sign in UNPRINTABLE.items() if chr(code) not in "\n\t"}
"""Replacements of control characters, which a terminal would obey."""
Fields = dict[str, Any]


@with_options(
    fields=options(CompletionRequest, HIDDEN),
    recomputed=options(RecomputedPatch, context=None),
    adapted=options(AdapterPatch, ("context",), adapter=None),
    target=TARGET,
)
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    *,
    recomputed: Fields,
    context_file: ContextFile = None,
    adapted: Fields,
    fields: Fields,
    target: Target,
) -> None:
    """Continue a text, and print each token as soon as it is generated.

    With --context, the model generates without the context, under patches that reproduce the run
    with it. With --adapter, the model generates with an adapter. --context is then the adapter's
    context: the prompt gets the positions that the adapter was made for, and --agreement compares
    with the run that reads the context.
    """
    asked = {**fields, "patch": patch_of(with_context(recomputed, context_file), adapted)}
    if target.as_json:
        target.ask(lambda client: client.completions(prompt, **asked), lambda _: "")
    asked["stream_options"] = {"include_usage": True}

    async def stream(client: AsyncDeltawClient) -> Sequence[Completion]:
        got = []
        try:
            async with aclosing(client.stream_completions(prompt, **asked)) as events:
                async for event in events:
                    got.append(event)
                    for choice in event.choices:
                        typer.echo(choice.text.translate(PRINTED), nl=False)
        finally:
            if got:
                typer.echo()
        return got

    target.ask(stream, of_generation)


def patch_of(recomputed: Fields, adapted: Fields) -> Fields | None:
    """Return the patch that the options describe; None without patch options.

    Raises:
        typer.BadParameter: The options belong to different patches.
    """
    if "adapter" in adapted:
        if foreign := recomputed.keys() - {"context"}:
            raise typer.BadParameter(f"--{min(foreign)} does not go with --adapter")
        return {**recomputed, **adapted}
    if adapted:
        raise typer.BadParameter("--scale needs --adapter")
    if recomputed and "context" not in recomputed:
        raise typer.BadParameter(f"--{min(recomputed)} needs --context")
    return recomputed or None


def of_generation(events: Sequence[Completion]) -> RenderableType:
    """Lay out the agreement of each token, if it was asked for, and what was generated."""
    return Group(*_of_agreement(events), "; ".join(_facts(events)))


def _of_agreement(events: Sequence[Completion]) -> Iterator[RenderableType]:
    rows: list[tuple[Cell, ...]] = []
    for event in events:
        text = "".join(choice.text for choice in event.choices)
        for token in event.agreement or ():
            same = "yes" if token.same_token else "no"
            rows.append((repr(text), token.token, same, token.kl, token.margin, token.rows_patched))
    if rows:
        head = ["text", "token", "same token", "KL", "margin", "rows patched"]
        caption = "the patched run, compared with the run with context; KL and margin in nats"
        yield table("agreement", head, rows, caption)


def _facts(events: Sequence[Completion]) -> Iterator[str]:
    """Say how the generation ended, and name its seed and weights."""
    for choice in (choice for event in events for choice in event.choices):
        if choice.finish_reason is not None:
            yield f"finish reason {choice.finish_reason}"
    for usage in (event.usage for event in events if event.usage):
        yield f"{usage.completion_tokens:,} tokens after a prompt of {usage.prompt_tokens:,}"
    if any(event.one_set_of_weights is False for event in events):
        yield "no single set of weights gives this text"
    for event in events[:1]:
        if event.seed is not UNSET:
            yield f"seed {event.seed}"
        if event.resident_model is not UNSET:
            yield of_model_summary(event.resident_model)
