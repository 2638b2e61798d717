"""Types that several resources share: strict requests, answers, prompts, tensors, tokens.

Requests are pydantic models, because they are read from untrusted bytes. Answers are frozen
dataclasses, because they are only written: the service builds them with torch tensors, the wire
has them with `Tensor`, and the client reads them with NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from threading import Lock
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictInt, Tag, TypeAdapter
from pydantic_core import CoreSchema, PydanticOmit, core_schema
from typing_extensions import TypeVar

Integer = Annotated[StrictInt, Field(ge=-(2**53), le=2**53)]
"""An integer that every JSON reader holds exactly."""


class Request(BaseModel):
    """A request body. Unknown fields, coerced values and NaN are refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )


def with_examples(*bodies: dict[str, Any]) -> ConfigDict:
    """Return the configuration of a request with examples of its body."""
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


class Answer:
    """Base of every dataclass that is part of an answer.

    A field's docstring is its description. A dataclass that has subclasses describes its fields in
    `Field` instead, because pydantic does not find the docstrings of inherited fields.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", use_attribute_docstrings=True
    )


class Unset(Enum):
    """The value of a field that was not asked for. The answer leaves such a field out.

    A field that is null instead was asked for and cannot be formed.
    """

    UNSET = "unset"

    def __bool__(self) -> Literal[False]:
        return False

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        return core_schema.enum_schema(cls, list(cls))

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, _handler: Any) -> dict[str, Any]:
        # It never reaches the wire, so a JSON schema does not offer it.
        raise PydanticOmit


UNSET = Unset.UNSET
T = TypeVar("T")

_building = Lock()


def _built(kind: Any) -> TypeAdapter[Any]:
    # Python 3.11 raises a SystemError if two threads parse annotations at once.
    with _building:
        return TypeAdapter(kind)


adapter: Callable[[Any], TypeAdapter[Any]] = cache(_built)
"""The pydantic adapter that reads and writes a kind of answer."""


def read_answer(kind: type[T], content: str | bytes) -> T:
    """Read an answer from its JSON.

    Args:
        kind: A dataclass of `schemas`.
        content: JSON, as the service writes it.

    Raises:
        pydantic.ValidationError: The content is no such answer.
    """
    answer: T = adapter(kind).validate_json(content)
    return answer


def write_answer(answer: object) -> bytes:
    """Write an answer as JSON, without the fields that were not asked for."""
    return adapter(type(answer)).dump_json(answer)


def _is_unset(value: Any) -> bool:
    return value is UNSET


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


Asked = Annotated[T | Unset, Field(exclude_if=_is_unset, json_schema_extra=_without_default)]
"""A field that is present only if it was asked for."""


def _tag(value: Any) -> str | None:
    return "string" if isinstance(value, str) else "list" if isinstance(value, list) else None


def string_or_list(message: str) -> Discriminator:
    """The discriminator of a union of a string and a list, tagged `string` and `list`."""
    return Discriminator(_tag, custom_error_type="string_or_list", custom_error_message=message)


Integers = Annotated[list[Integer], Field(fail_fast=True), Tag("list")]
Text = Annotated[
    Annotated[str, Tag("string")] | Integers,
    string_or_list("give a string or a list of token ids"),
]
"""A prompt as text, or as token ids."""
Layers = Annotated[
    Annotated[Literal["all"], Tag("string")] | Integers,
    string_or_list("give `all` or a list of layers"),
    Field(description="`all`, or layer indices from 0. Negative indices count from the end."),
]
Positions = Annotated[
    Annotated[Literal["last", "all"], Tag("string")] | Integers,
    string_or_list("give `last`, `all` or a list of positions"),
    Field(description="`last`, `all`, or token indices. Negative indices count from the end."),
]
Encoding = Annotated[
    Literal["json", "base64"],
    Field(
        description="Form of the tensors: nested lists, or base64 of the little-endian bytes in C "
        "order. `Accept: application/vnd.safetensors` replaces both."
    ),
]


@dataclass(frozen=True)
class Tensor(Answer):
    """Numbers with a shape."""

    dtype: Literal["float32", "float64"]
    shape: Sequence[int]
    encoding: Literal["json", "base64"]
    data: list[Any] | str
    """Nested lists of numbers, or base64 of the bytes."""


Values = TypeVar("Values", default=Tensor)
"""The type that holds numbers: `Tensor` on the wire, an array or a torch tensor in a program."""


@dataclass(frozen=True)
class Token(Answer):
    """One token of a run."""

    id: int
    text: Annotated[
        str, Field(description="Text of the token. � stands for a part of a character.")
    ]
    special: Annotated[
        Asked[bool], Field(description="True for a special token, otherwise absent.")
    ] = UNSET
    bytes: Annotated[
        Asked[str],
        Field(description="Bytes of the token in base64, present if they are not whole UTF-8."),
    ] = UNSET


DType = Literal["float32", "bfloat16", "float16"]
"""The dtype of resident weights."""


@dataclass(frozen=True)
class ModelSummary(Answer):
    """The weights that the numbers come from."""

    id: str
    """`bundled`, the hub id, or the folder's name."""
    revision: str | None
    """Commit on the hub. Null for a folder."""
    weights_digest: str
    """SHA-256 of the loaded safetensors files, in the order of their names."""
    dtype: DType
    device: str
    attention: Literal["sdpa"]
