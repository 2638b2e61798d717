"""`python -m benchmarks.peers.side PEER FOLDER DEVICE THREADS`: the peer's end, in its environment.

in   {"idiom": "early stop", "context": [ids], "query": id, "layer": 5}
out  {"seconds": 0.04, "processor": 0.04, "a_context": [], "a": [], "output": []}

`early stop` is the fastest way that the peer offers, `documented` the one in its documentation.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Read = Callable[[Tensor, int], Tensor]
"""Ids (1, rows) and a layer to the last row's input of that layer's first MLP weight, (d_model)."""


Loaded = tuple[Mapping[str, Read], Callable[[int], Tensor]]
"""A peer's idioms, and a layer's first MLP weight, (d_model, d_mlp)."""


def nnsight(folder: str, device: str) -> Loaded:
    """`trace` with a saved input; the early stop is `tracer.stop()` behind it."""
    from nnsight import TransformersModel  # type: ignore[import-not-found]

    model: Any = TransformersModel(
        folder, task="text-generation", device=device, dtype=torch.float32, dispatch=True
    )
    blocks = model.transformer.h

    def documented(ids: Tensor, layer: int) -> Tensor:
        with model.trace(ids):
            read = blocks[layer].mlp.c_fc.input.save()
        vector: Tensor = read[0, -1]
        return vector

    def early_stop(ids: Tensor, layer: int) -> Tensor:
        with model.trace(ids) as tracer:
            read = blocks[layer].mlp.c_fc.input.save()
            tracer.stop()
        vector: Tensor = read[0, -1]
        return vector

    idioms = {"early stop": early_stop, "documented": documented}
    return idioms, lambda layer: blocks[layer].mlp.c_fc.weight


def transformer_lens(folder: str, device: str) -> Loaded:
    """`run_with_cache`; the early stop is `names_filter` and `stop_at_layer`.

    Since 4.0 `TransformerBridge` is the only model class; it chooses eager attention by itself.
    """
    from transformer_lens.model_bridge import (  # type: ignore[import-not-found]
        TransformerBridge,
    )

    model: Any = TransformerBridge.boot_transformers(folder, device=device)

    def read(ids: Tensor, layer: int, **options: Any) -> Tensor:
        _logits, cache = model.run_with_cache(ids, **options)
        vector: Tensor = cache[f"blocks.{layer}.mlp.hook_in"][0, -1]
        return vector

    def early_stop(ids: Tensor, layer: int) -> Tensor:
        name = f"blocks.{layer}.mlp.hook_in"
        return read(ids, layer, names_filter=name, stop_at_layer=layer + 1)

    idioms = {"early stop": early_stop, "documented": read}
    return idioms, lambda layer: model.blocks[layer].mlp.W_in


LOADERS = {"nnsight": nnsight, "TransformerLens": transformer_lens}


def main() -> None:
    """Load the model, then answer lines until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    peer, folder, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    loaded = LOADERS[peer](folder, device)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), loaded, device)), file=answers)


def _answer(question: Mapping[str, Any], loaded: Loaded, device: str) -> dict[str, Any]:
    """Compute both runs and the factors, as the engine does; no matrix is formed."""
    idioms, weight = loaded
    read, layer = idioms[question["idiom"]], question["layer"]
    context, query = question["context"], question["query"]
    start, start_processor = time.perf_counter(), time.process_time()
    with torch.no_grad():
        a_context = read(torch.tensor([[*context, query]], device=device), layer)
        a = read(torch.tensor([[query]], device=device), layer)
        output = (a_context - a) @ weight(layer)
        _input_factor = a / a.square().sum()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    seconds, processor = time.perf_counter() - start, time.process_time() - start_processor
    vectors = {"a_context": a_context, "a": a, "output": output}
    lists = {name: vector.tolist() for name, vector in vectors.items()}
    return {"seconds": seconds, "processor": processor, **lists}


if __name__ == "__main__":
    main()
