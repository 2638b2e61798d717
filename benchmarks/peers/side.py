"""The peer's end of the line: one JSON line in, one out. Imported by a peer's process alone.

in   {"idiom": "early stop", "context": [ids], "query": id, "layer": 5, "give": false}
out  {"seconds": 0.04, "processor": 0.04}    with `give` also a_context, a and output
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Read = Callable[[Tensor, int], Tensor]
"""The vector that a layer's first MLP weight multiplies, for the last of the ids (1, rows)."""


def serve(load: Callable[[str, str], tuple[Mapping[str, Read], Callable[[int], Tensor]]]) -> None:
    """Answer lines until there are no more.

    Args:
        load: From a folder and a device: how to read a vector in each idiom, and a layer's first
            MLP weight, (d_model, d_mlp).
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    folder, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    idioms, weight = load(folder, device)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), idioms, weight, device)), file=answers)


def _answer(
    asked: Mapping[str, Any],
    idioms: Mapping[str, Read],
    weight: Callable[[int], Tensor],
    device: str,
) -> dict[str, Any]:
    read = idioms[asked["idiom"]]
    context, query, layer = asked["context"], asked["query"], asked["layer"]
    start, worked = time.perf_counter(), time.process_time()
    with torch.no_grad():
        given = _update(read, context, query, layer, weight(layer), device)
    _wait_for(device)
    taken = {"seconds": time.perf_counter() - start, "processor": time.process_time() - worked}
    if not asked["give"]:
        return taken
    names = ("a_context", "a", "output")
    return taken | {name: vector.tolist() for name, vector in zip(names, given, strict=True)}


def _update(
    read: Read, context: Sequence[int], query: int, layer: int, w: Tensor, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Both runs and the update's factors, as the engine gives them: no matrix is formed."""
    a_context = read(torch.tensor([[*context, query]], device=device), layer)
    a = read(torch.tensor([[query]], device=device), layer)
    output = (a_context - a) @ w
    _input_factor = a / a.square().sum()
    return a_context, a, output


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
