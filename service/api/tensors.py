"""Answers as bytes: JSON with tensors as lists or base64, or one safetensors file.

Tensors are written from memory without a Python list in between. Fields that are `UNSET` were not
asked for and are left out.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from typing_extensions import TypeVar

from schemas.common import UNSET, Answer, Encoding
from service import tensor_file
from service.api.heads import JSON, SAFETENSORS
from service.api.refusals import ProblemError

NUMBER_BYTES = 16
"""Maximum characters of a float32 number in JSON, with its comma."""

Write = Callable[[str, NDArray[Any]], dict[str, Any]]


def negotiate(accept: str | None, offered: Sequence[str]) -> str:
    """The media type of the answer: the one that the client prefers, then the one named first.

    Args:
        accept: The request's `Accept` header, if any.
        offered: Available media types, the default first.

    Raises:
        ProblemError: `not_acceptable`.
    """
    ranges = dict(_range(part) for part in (accept or "*/*").split(","))
    liked = {media: _liking(ranges, media) for media in offered}
    named = [*ranges, *offered]
    best = max(offered, key=lambda media: (liked[media], -named.index(media)))
    if not liked[best]:
        raise ProblemError("not_acceptable")
    return best


def _range(part: str) -> tuple[str, float]:
    """One media range of an `Accept` header and its quality."""
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
    try:
        return media, float(quality)
    except ValueError:
        return media, 0.0


def _liking(ranges: Mapping[str, float], media: str) -> float:
    """The quality of the most specific range that contains a media type."""
    specific = (media, "application/*", "*/*")
    return next((ranges[name] for name in specific if name in ranges), 0.0)


def tensor_bytes(numbers: int, media: str, encoding: Encoding) -> int:
    """Maximum bytes of the tensors of an answer.

    Args:
        numbers: Number of float32 numbers in them.
        media: Media type of the answer.
        encoding: Form of the tensors in JSON.
    """
    if media == SAFETENSORS:
        return numbers * 4
    return (numbers * 4 + 2) // 3 * 4 if encoding == "base64" else numbers * NUMBER_BYTES


def serialize(answer: Answer, media: str, encoding: Encoding) -> bytes:
    """The bytes of an answer.

    Args:
        answer: A dataclass of `schemas`, with torch tensors.
        media: JSON or safetensors.
        encoding: Form of the tensors in JSON.
    """
    if media == JSON:
        write = _as_base64 if encoding == "base64" else _as_lists
        return orjson.dumps(_plain(answer, "", write), option=orjson.OPT_SERIALIZE_NUMPY)
    tensors: dict[str, NDArray[Any]] = {}

    def refer(path: str, values: NDArray[Any]) -> dict[str, Any]:
        tensors[path] = values
        return {"dtype": values.dtype.name, "shape": values.shape, "tensor": path}

    response = orjson.dumps(_plain(answer, "", refer)).decode()
    return tensor_file.write(tensors, {"response": response})


def _plain(value: Any, path: str, write: Write) -> Any:
    """Containers that orjson knows, with every tensor as `write` returns it."""
    if isinstance(value, Answer):
        present = ((name, leaf, getattr(value, name)) for name, leaf in _fields(type(value)))  # type: ignore[arg-type]
        return {
            name: item if leaf else _plain(item, _under(path, name), write)
            for name, leaf, item in present
            if item is not UNSET
        }
    if isinstance(value, torch.Tensor):
        return write(path, _array(value))
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, list | tuple):
        return [_plain(item, _under(path, str(i)), write) for i, item in enumerate(value)]
    return value


@cache
def _fields(kind: Any) -> tuple[tuple[str, bool], ...]:
    """Each field of an answer, and whether orjson can write its values as they are."""
    types = get_type_hints(kind)
    return tuple((field.name, _is_leaf(types[field.name])) for field in fields(kind))


def _is_leaf(annotation: Any) -> bool:
    """Whether values of a type hold no tensor, no answer and no request."""
    if isinstance(annotation, TypeVar):
        return False
    origin = get_origin(annotation) or annotation
    if isinstance(origin, type) and issubclass(origin, Answer | BaseModel):
        return False
    return get_origin(annotation) is Literal or all(map(_is_leaf, get_args(annotation)))


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor as an array in C order. Half precision becomes float32, which holds it exactly."""
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    return np.ascontiguousarray(wide.numpy())


def _as_lists(_path: str, values: NDArray[Any]) -> dict[str, Any]:
    shape = values.shape
    return {"dtype": values.dtype.name, "shape": shape, "encoding": "json", "data": values}


def _as_base64(_path: str, values: NDArray[Any]) -> dict[str, Any]:
    data = base64.b64encode(values.data).decode()
    return {
        "dtype": values.dtype.name,
        "shape": values.shape,
        "encoding": "base64",
        "data": data,
    }
