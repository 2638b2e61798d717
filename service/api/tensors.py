"""Answers to bytes: JSON with tensors as lists or base64, or one safetensors file.

A tensor goes from memory to the wire without a Python list in between. A field that defaults to
None and is None was not asked for, and is left out.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from safetensors.numpy import save

from service.api.problems import ProblemError

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
Encoding = Literal["json", "base64"]

NUMBER_BYTES = 16
"""The longest that a float32 number gets, with its comma."""

Write = Callable[[str, NDArray[Any]], dict[str, Any]]


def negotiate(accept: str | None, offered: Sequence[str]) -> str:
    """The media type to answer in: what the caller likes best, of equals what it names first.

    Args:
        accept: The request's `Accept`, if any.
        offered: What there is, the default first.

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
    """One media range of an `Accept`, with its quality."""
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
    try:
        return media, float(quality)
    except ValueError:
        return media, 0.0


def _liking(ranges: Mapping[str, float], media: str) -> float:
    """The quality of the most specific range that a media type is in."""
    specific = (media, "application/*", "*/*")
    return next((ranges[name] for name in specific if name in ranges), 0.0)


def tensor_bytes(numbers: int, media: str, encoding: Encoding) -> int:
    """At most how many bytes the tensors of an answer take.

    Args:
        numbers: How many float32 numbers they hold.
        media: What the answer will be written as.
        encoding: How they will be, in JSON.
    """
    if media == SAFETENSORS:
        return numbers * 4
    return (numbers * 4 + 2) // 3 * 4 if encoding == "base64" else numbers * NUMBER_BYTES


def serialize(answer: Mapping[str, Any], media: str, encoding: Encoding) -> bytes:
    """The bytes of an answer.

    Args:
        answer: Mappings, sequences, dataclasses and models of plain values and tensors.
        media: JSON or safetensors.
        encoding: How tensors are written in JSON.
    """
    if media == JSON:
        write = _as_base64 if encoding == "base64" else _as_lists
        return orjson.dumps(_plain(answer, "", write), option=orjson.OPT_SERIALIZE_NUMPY)
    tensors: dict[str, NDArray[Any]] = {}

    def refer(path: str, values: NDArray[Any]) -> dict[str, Any]:
        tensors[path] = values
        return {"dtype": values.dtype.name, "shape": values.shape, "tensor": path}

    response = orjson.dumps(_plain(answer, "", refer)).decode()
    return save(tensors, {"response": response})


def _plain(value: Any, path: str, write: Write) -> Any:
    """Plain containers, with every tensor as `write` gives it."""
    if isinstance(value, torch.Tensor):
        return write(path, _array(value))
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if is_dataclass(value):
        present = (
            (field.name, getattr(value, field.name))
            for field in fields(value)
            if field.default is not None or getattr(value, field.name) is not None
        )
        return {name: _plain(item, _under(path, name), write) for name, item in present}
    if isinstance(value, Mapping):
        return {name: _plain(item, _under(path, name), write) for name, item in value.items()}
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], int):
            return value
        return [_plain(item, _under(path, str(i)), write) for i, item in enumerate(value)]
    return value


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    """In C order and little-endian; half precision as float32, which holds it exactly."""
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
