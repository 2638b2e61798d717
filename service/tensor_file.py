"""Files in the safetensors format: 8 bytes of length, a JSON header, the numbers.

The safetensors library allocates memory in Rust. If such an allocation fails, the call never
returns and keeps the interpreter's lock, so the whole service would stop. The functions of this
module raise `MemoryError` instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

DTYPES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
"""NumPy dtypes by name in the file."""


def write(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a file, the same as the library would write.

    Args:
        tensors: float32 and float64 arrays, contiguous in C order.
        metadata: Texts of the header.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    # The format wants the largest numbers first, so that every tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda one: (-one[1].itemsize, one[0]))
    end = 0
    for name, values in ordered:
        start, end = end, end + values.nbytes
        dtype = f"F{8 * values.itemsize}"
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [start, end]}
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    data = [values.data for _, values in ordered]
    return b"".join([len(text).to_bytes(8, "little"), text, *data])


def read(content: bytearray) -> dict[str, NDArray[Any]]:
    """Return the tensors of a file made by `write`, as views of its content."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    data = memoryview(content)[start:]
    return {name: _array(entry, data) for name, entry in header.items()}


def _array(entry: Mapping[str, Any], data: memoryview) -> NDArray[Any]:
    begin, end = entry["data_offsets"]
    return np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
