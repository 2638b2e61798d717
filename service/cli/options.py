"""Options: a flag for each setting, a dataclass for options that several commands share, and the
reading of lists."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from service.settings import Settings, read_settings


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
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
        command(settings(given), **values)

    return _shaped(with_flags, command, [*own, *flags])


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of each argument that is a dataclass as options of its own."""
    arguments = inspect.signature(command, eval_str=True).parameters
    groups = {
        name: list(inspect.signature(argument.annotation, eval_str=True).parameters.values())
        for name, argument in arguments.items()
        if isinstance(argument.annotation, type) and is_dataclass(argument.annotation)
    }

    def with_groups(**values: Any) -> None:
        made = {
            name: arguments[name].annotation(**{o.name: values.pop(o.name) for o in options})
            for name, options in groups.items()
        }
        command(**made, **values)

    flat = [o for name, a in arguments.items() for o in groups.get(name, [a])]
    return _shaped(
        with_groups, command, [o.replace(kind=inspect.Parameter.KEYWORD_ONLY) for o in flat]
    )


def _shaped(
    function: Callable[..., None], command: Callable[..., None], options: list[inspect.Parameter]
) -> Callable[..., None]:
    """The function under the command's name, with these options for typer to see."""
    function.__name__, function.__doc__ = command.__name__, command.__doc__
    function.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    function.__annotations__ = {option.name: option.annotation for option in options}
    return function


def settings(flags: Mapping[str, str | None]) -> Settings:
    """The settings with the flags that are given, or one sentence for each mistake in them.

    Raises:
        typer.Exit: With 2.
    """
    try:
        return read_settings(**{name: flag for name, flag in flags.items() if flag is not None})
    except ValidationError as error:
        for mistake in error.errors():
            name = "".join(str(step) for step in mistake["loc"][:1])
            said = mistake["msg"].removeprefix("Value error, ")
            typer.echo(f"deltaw: {name + ': ' if name else ''}{said}", err=True)
    except (ValueError, OSError) as error:
        typer.echo(f"deltaw: {error}", err=True)
    raise typer.Exit(2)


def listed(text: str) -> str | list[int]:
    """`0,3,-1` as integers; a word as itself.

    Raises:
        typer.BadParameter: It is neither.
    """
    if text.isalpha():
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter("give a word, or whole numbers with commas: 0,3,-1") from None


def spans(text: str) -> list[tuple[int, int]]:
    """`0:8,8:18` as half-open spans.

    Raises:
        typer.BadParameter: It is something else.
    """
    try:
        pieces = (piece.split(":") for piece in text.split(","))
        return [(int(start), int(end)) for start, end in pieces]
    except ValueError:
        raise typer.BadParameter("give spans with commas: 0:8,8:18") from None


def words(text: str) -> list[str]:
    """`factors,bias` as words; nothing as none."""
    return [word for word in (piece.strip() for piece in text.split(",")) if word]


def baseline(text: str) -> Any:
    """A baseline's name, or the JSON of one that has parts.

    Raises:
        typer.BadParameter: It begins like JSON and is none.
    """
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise typer.BadParameter('give a name, or JSON: {"without": [[0, 7]]}') from None


@dataclass(frozen=True)
class Relation:
    """What the numbers of a pair are relative to, and which of them are asked for.

    Args:
        baseline: What the run with context is compared with.
        stream: Where a layer's baseline is read.
        layers: Which.
        positions: Of the query.
    """

    baseline: Annotated[
        str | None,
        typer.Option(
            help="`matched` (default), `alone`, `anchored`, '{\"without\": [[0, 7]]}' or "
            '\'{"context": "another"}\''
        ),
    ] = None
    stream: Annotated[str | None, typer.Option(help="`free` (default) or `sequential`")] = None
    layers: Annotated[
        str | None, typer.Option(help="`all` (default), or 0,3,-1: negative ones from the end")
    ] = None
    positions: Annotated[
        str | None, typer.Option(help="of the query: `last` (default), `all`, or 0,1")
    ] = None

    @property
    def fields(self) -> dict[str, Any]:
        """Those of a request that were given."""
        given = {
            "baseline": self.baseline and baseline(self.baseline),
            "stream": self.stream,
            "layers": self.layers and listed(self.layers),
            "positions": self.positions and listed(self.positions),
        }
        return {name: value for name, value in given.items() if value is not None}
