"""A GPT-2 checkpoint folder read into float64 arrays, with a parser of its own.

The safetensors layout: eight bytes (little-endian length of the header), a JSON header
``{name: {"dtype", "shape", "data_offsets": [begin, end]}}``, then the bytes of the tensors.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed ``config.json`` of the folder."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def read_weights(folder: Path) -> dict[str, Array]:
    """Every floating-point tensor of the folder in float64, by name without ``transformer.``."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        shards = ["model.safetensors"]
    weights: dict[str, Array] = {}
    for shard in shards:
        for name, values in _read_shard(folder / shard).items():
            weights[name.removeprefix("transformer.")] = values
    return weights


def _read_shard(path: Path) -> dict[str, Array]:
    """The tensors of one safetensors file, without integer tensors (old mask buffers)."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header: dict[str, Any] = json.loads(raw[8 : 8 + length])
    tensors: dict[str, Array] = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in ("F64", "F32", "F16", "BF16"):
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = _float64(raw[begin:end], entry["dtype"]).reshape(entry["shape"])
    return tensors


def _float64(data: bytes, dtype: str) -> Array:
    """Stored numbers, flat, in float64 (exact, since float64 holds each of these formats)."""
    if dtype == "BF16":  # bfloat16 is the upper half of a float32
        upper = np.frombuffer(data, dtype="<u2").astype(np.uint32)
        return (upper << 16).view(np.float32).astype(np.float64)
    stored = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]
    return np.frombuffer(data, dtype=stored).astype(np.float64)
