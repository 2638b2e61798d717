"""What every body shares: strictness, prompts, choices, tokens, tensors, the model's identity."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictInt, Tag
from typing_extensions import TypeVar

Integer = Annotated[StrictInt, Field(ge=-(2**53), le=2**53)]
"""An integer that every JSON reader holds exactly."""


class Request(BaseModel):
    """A request body: nothing unknown, nothing coerced, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Answer(BaseModel):
    """A part of an answer. Fields that were not asked for are absent."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _kind_of_text(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "ids" if isinstance(value, list) else None


Text = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Integer], Field(fail_fast=True), Tag("ids")],
    Discriminator(
        _kind_of_text,
        custom_error_type="text_or_ids",
        custom_error_message="give a string or a list of token ids",
    ),
]
"""A prompt as text, or as token ids."""


def _kind_of_choice(value: Any) -> str | None:
    return "word" if isinstance(value, str) else "list" if isinstance(value, list) else None


def _choice(message: str) -> Discriminator:
    return Discriminator(
        _kind_of_choice, custom_error_type="word_or_list", custom_error_message=message
    )


Layers = Annotated[
    Annotated[Literal["all"], Tag("word")]
    | Annotated[list[Integer], Field(fail_fast=True), Tag("list")],
    _choice("give `all` or a list of layers"),
    Field(description="`all`, or layers from 0; negative ones count from the end"),
]
Positions = Annotated[
    Annotated[Literal["last", "all"], Tag("word")]
    | Annotated[list[Integer], Field(fail_fast=True), Tag("list")],
    _choice("give `last`, `all` or a list of positions"),
    Field(description="`last`, `all`, or token indices; negative ones count from the end"),
]
Encoding = Annotated[
    Literal["json", "base64"],
    Field(
        description="how tensors are written: nested lists, or base64 of the little-endian bytes "
        "in C order; with `Accept: application/vnd.safetensors` neither"
    ),
]


class Tensor(Answer):
    """Numbers with a shape."""

    dtype: Literal["float32", "float64"]
    shape: list[int]
    encoding: Literal["json", "base64"]
    data: Annotated[
        list[Any] | str,
        Field(description="nested lists of numbers, or base64 of the bytes"),
    ]


Values = TypeVar("Values", default=Tensor)
"""What holds the numbers: a `Tensor` on the wire, an array in a program."""


class Token(Answer):
    """One token that was run."""

    id: int
    text: Annotated[str, Field(description="what it spells; � stands for part of a character")]
    special: Annotated[bool | None, Field(description="true for a special token, else absent")] = (
        None
    )
    bytes: Annotated[
        str | None,
        Field(description="what it spells in base64, where that is not whole UTF-8; else absent"),
    ] = None


class ModelSummary(Answer):
    """Which weights the numbers are from."""

    id: Annotated[str, Field(description="`bundled`, the hub id, or the folder's name")]
    revision: Annotated[str | None, Field(description="the hub commit; null for a folder")]
    weights_digest: Annotated[
        str, Field(description="sha256 over the safetensors files in the order of their names")
    ]
    dtype: Literal["float32", "bfloat16", "float16"]
    device: str
    attention: Literal["sdpa"]
