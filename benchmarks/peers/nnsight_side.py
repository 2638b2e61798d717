"""nnsight's side: `trace` and a saved input, and the same with `tracer.stop()` behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from nnsight import TransformersModel  # type: ignore[import-not-found]
from torch import Tensor

from benchmarks.peers.side import Read, serve


def load(folder: str, device: str) -> tuple[Mapping[str, Read], Callable[[int], Tensor]]:
    """The model, ready to be read."""
    model: Any = TransformersModel(
        folder, task="text-generation", device=device, dtype=torch.float32, dispatch=True
    )
    blocks = model.transformer.h

    def documented(ids: Tensor, layer: int) -> Tensor:
        with model.trace(ids):
            read = blocks[layer].mlp.c_fc.input.save()
        found: Tensor = read[0, -1]
        return found

    def early_stop(ids: Tensor, layer: int) -> Tensor:
        with model.trace(ids) as tracer:
            read = blocks[layer].mlp.c_fc.input.save()
            tracer.stop()
        found: Tensor = read[0, -1]
        return found

    def weight(layer: int) -> Tensor:
        found: Tensor = blocks[layer].mlp.c_fc.weight
        return found

    return {"early stop": early_stop, "documented": documented}, weight


if __name__ == "__main__":
    serve(load)
