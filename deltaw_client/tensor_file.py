"""The safetensors format, read without copying: 8 bytes of length, a JSON header, one buffer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES: Mapping[str, str] = {"F32": "<f4", "F64": "<f8"}
"""What the service writes; half precision comes as float32, which holds it exactly."""


def unpack(content: bytes) -> tuple[str, dict[str, NDArray[Any]]]:
    """The answer's JSON and its tensors by path, as read-only views of the content.

    Args:
        content: A safetensors answer.

    Raises:
        ValueError: It is none.
    """
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8:start])
        response: str = header.pop("__metadata__")["response"]
        tensors = {path: _array(entry, content, start) for path, entry in header.items()}
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a safetensors answer ({type(error).__name__})") from error
    return response, tensors


def _array(entry: Mapping[str, Any], content: bytes, start: int) -> NDArray[Any]:
    """One tensor; its two offsets count from the buffer's start."""
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    kind = np.dtype(DTYPES[entry["dtype"]])
    if begin < 0 or end - begin != kind.itemsize * prod(shape):
        raise ValueError(f"a tensor of shape {shape} does not take {end - begin} bytes")
    return np.frombuffer(content, kind, prod(shape), start + begin).reshape(shape)
