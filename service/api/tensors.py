"""Answers to bytes: JSON with tensors as lists or base64, or one safetensors file.

A tensor goes from memory to the wire without a Python list in between. A field that defaults to
None and is None was not asked for, and is left out.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from safetensors.numpy import save

from service.api.problems import ProblemError
from service.errors import NeverFits

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
Encoding = Literal["json", "base64"]

JSON_BYTES = {torch.float32: 16, torch.float64: 25}
"""The longest that a number of each dtype gets, with its comma."""
ENTRY_BYTES = 2048
"""More than an entry takes beside its tensors."""

Write = Callable[[str, NDArray[Any]], dict[str, Any]]


def negotiate(accept: str | None) -> str:
    """The media type to answer in: safetensors where it is preferred, JSON where that is accepted.

    Raises:
        ProblemError: `not_acceptable`.
    """
    best, chosen = 0.0, ""
    for part in (accept or "*/*").split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((_quality(p) for p in parameters if p.startswith("q=")), 1.0)
        offered = SAFETENSORS if media == SAFETENSORS else JSON
        if media in ("*/*", "application/*", JSON, SAFETENSORS) and quality > best:
            best, chosen = quality, offered
    if not chosen:
        raise ProblemError("not_acceptable")
    return chosen


def _quality(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0.0


def check_size(
    numbers: Mapping[torch.dtype, int], entries: int, media: str, encoding: Encoding, limit: int
) -> None:
    """Refuse an answer that would be too large, before any work.

    Args:
        numbers: How many of each dtype its tensors hold.
        entries: How many entries it has.
        media: What it will be written as.
        encoding: How its tensors will be, in JSON.
        limit: Bytes of an answer.

    Raises:
        NeverFits: It would have more bytes.
    """
    size = entries * ENTRY_BYTES
    for dtype, count in numbers.items():
        if media == SAFETENSORS:
            size += count * dtype.itemsize
        elif encoding == "base64":
            size += (count * dtype.itemsize + 2) // 3 * 4
        else:
            size += count * JSON_BYTES[dtype]
    if size > limit:
        raise NeverFits(
            "the answer would be too large: ask for fewer layers or positions, a reduction, or "
            "safetensors",
            limit=limit,
            actual=size,
        )


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
    wide = tensor if tensor.dtype in JSON_BYTES else tensor.float()
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
