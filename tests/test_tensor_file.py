"""Safetensors files of deltaw are the same as those of the safetensors library."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from service import tensor_file


def test_file_is_that_of_the_library() -> None:
    """A file has the same bytes as that of the library, and is read back.

    One tensor has no entries, one has no axes, and the text is not ASCII.
    """
    tensors: dict[str, NDArray[Any]] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a.0": np.array([], np.float32),
        "a": np.linspace(0.0, 1.0, 5),
        "c": np.array(2.5, np.float32),
    }
    metadata = {"response": '{"text":"Δ \\" \\u0000"}'}
    written = tensor_file.write(tensors, metadata)
    read = load(written)
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in read.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in tensors.items()
    }
    assert written == save(tensors, metadata)
    again = tensor_file.read(bytearray(written))
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in again.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in tensors.items()
    }
