"""Command-line options made from the fields of settings and of request bodies.

Types, defaults and descriptions come from the fields, so that each is written once.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from rich.markup import escape

from service.settings import Settings, read_settings

Group = tuple[Callable[..., Any], Sequence[inspect.Parameter]]
"""The function that receives the given options, and the options in the form that typer reads."""


def options(model: type[BaseModel], without: Sequence[str] = (), **defaults: Any) -> Group:
    """Make an option of each field of a model. The command receives those given as a dict.

    Args:
        model: `Settings`, or the model of a request body.
        without: Fields without an option.
        defaults: Defaults that replace the fields' own.
    """
    named = {name: field for name, field in model.model_fields.items() if name not in without}
    return dict, [_option(name, field, defaults) for name, field in named.items()]


def options_of_any(
    models: Mapping[str, type[BaseModel]], without: Sequence[str] = (), **defaults: Any
) -> Group:
    """Make an option of each field of several models. Its description names the models that have
    the field, unless all have it.

    Args:
        models: Models of request bodies by the names of their resources. Of a field of several
            models, the first one describes the option.
        without: Fields without an option.
        defaults: Defaults that replace the fields' own.
    """
    made: dict[str, inspect.Parameter] = {}
    for model in models.values():
        for name, field in model.model_fields.items():
            having = [known for known, other in models.items() if name in other.model_fields]
            if name not in without and name not in made:
                only = "" if len(having) == len(models) else f" Only for {' and '.join(having)}."
                made[name] = _option(name, field, defaults, only)
    return dict, list(made.values())


def _option(
    name: str, field: FieldInfo, defaults: dict[str, Any], more: str = ""
) -> inspect.Parameter:
    kinds = [_plain(kind) for kind in get_args(field.annotation) or () if kind is not NoneType]
    kind: Any = field.annotation if get_origin(field.annotation) is Literal else str
    for simple in (bool, int, float, Path):
        if simple is field.annotation or kinds == [simple]:
            kind = simple
    default = inspect.Parameter.empty if field.is_required() else field.default
    default = defaults.get(name, default)
    if isinstance(default, list | tuple):
        default = ",".join(default) or None
    form = f" Give {PARSERS[name][1]}." if name in PARSERS else ""
    # Square brackets would be taken for markup.
    option = typer.Option(help=escape(f"{field.description}{form}{more}"))
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _plain(kind: Any) -> Any:
    """Return a type without its constraints."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def with_options(**groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of each group, in place of its parameter of the group's name."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters

        def run(ctx: typer.Context, **values: Any) -> None:
            for group, (build, members) in groups.items():
                asked = {option.name: values.pop(option.name) for option in members}
                values[group] = build(
                    **{
                        name: parse_option(name, value)
                        for name, value in asked.items()
                        if getattr(ctx.get_parameter_source(name), "name", "") != "DEFAULT"
                    }
                )
            command(**values)

        keyword = inspect.Parameter.KEYWORD_ONLY
        flat = [inspect.Parameter("ctx", keyword, annotation=typer.Context)]
        for name, parameter in own.items():
            flat += groups[name][1] if name in groups else [parameter]
        flat = [option.replace(kind=keyword) for option in flat]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
        run.__annotations__ = {option.name: option.annotation for option in flat}
        return run

    return decorate


def parse_option(name: str, value: Any) -> Any:
    """Parse an option's text into the field of a request.

    Raises:
        typer.BadParameter: The text has another form.
    """
    if name not in PARSERS:
        return value
    parse, form = PARSERS[name]
    try:
        return parse(value)
    except (ValueError, OSError) as error:
        flag = f"--{name.replace('_', '-')}"
        raise typer.BadParameter(f"give {form}", param_hint=flag) from error


def settings(**flags: Any) -> Settings:
    """Read the settings, with these flags before the environment.

    Raises:
        typer.Exit: A setting is wrong (code 2); each mistake is printed as one sentence.
    """
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


def _indices(text: str) -> str | list[int]:
    return text if text.isalpha() else [int(part) for part in text.split(",")]


def _spans(text: str) -> list[tuple[int, int]]:
    return [(int(start), int(end)) for start, end in (span.split(":") for span in text.split(","))]


def _words(text: str) -> list[str]:
    return [word for word in (piece.strip() for piece in text.split(",")) if word]


def _lines(path: str) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return [line for line in (line.removesuffix("\r") for line in lines) if line.strip()]


def _keep(text: str) -> str | list[str]:
    return text if text in ("default", "none") else _lines(text)


def _baseline(text: str) -> Any:
    return json.loads(text) if text.startswith("{") else text


PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "baseline": (_baseline, 'a name, or JSON: {"without": [[0, 7]]}'),
    "held_out": (_lines, "a file with a query per line"),
    "hook_points": (_words, "names with commas: mlp_in,mlp_pre"),
    "include": (_words, "names with commas: factors,bias"),
    "keep": (_keep, "`default`, `none`, or a file with a text per line"),
    "layers": (_indices, "a word, or integers with commas: 0,3,-1"),
    "patch": (json.loads, 'JSON: {"adapter": "ID"}'),
    "positions": (_indices, "a word, or integers with commas: 0,3,-1"),
    "queries": (_lines, "a file with a query per line"),
    "spans": (_spans, "spans with commas: 0:8,8:18"),
}
"""Parsers of request fields that are not text, a number or a choice, with the form they read."""
