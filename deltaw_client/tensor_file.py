"""A reader of safetensors that does not copy: 8 bytes of length, a JSON header, one buffer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES: Mapping[str, str] = {"F32": "<f4", "F64": "<f8"}
"""NumPy dtypes by name in the file. The service writes half precision as float32, exactly."""


def unpack(content: bytes) -> tuple[str, dict[str, NDArray[Any]]]:
    """Return an answer's JSON, and its tensors by path as read-only views of the content.

    Args:
        content: A safetensors answer.

    Raises:
        ValueError: The content is not a safetensors answer.
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
    """Return one tensor. Its offsets are relative to the buffer, which begins at `start`."""
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    kind = np.dtype(DTYPES[entry["dtype"]])
    if begin < 0 or end - begin != kind.itemsize * prod(shape):
        raise ValueError(f"a tensor of shape {shape} cannot have {end - begin} bytes")
    return np.frombuffer(content, kind, prod(shape), start + begin).reshape(shape)
