"""TransformerLens's side: `run_with_cache`, and the same with `names_filter` and `stop_at_layer`.

Since 4.0 `TransformerBridge` is what there is; its attention is `eager`, as it chooses by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformer_lens.model_bridge import (  # type: ignore[import-not-found]
    TransformerBridge,
)

from benchmarks.peers.side import Read, serve


def load(folder: str, device: str) -> tuple[Mapping[str, Read], Callable[[int], Tensor]]:
    """The model, ready to be read."""
    model: Any = TransformerBridge.boot_transformers(folder, device=device)

    def documented(ids: Tensor, layer: int) -> Tensor:
        _logits, cache = model.run_with_cache(ids)
        found: Tensor = cache[_site(layer)][0, -1]
        return found

    def early_stop(ids: Tensor, layer: int) -> Tensor:
        site = _site(layer)
        _, cache = model.run_with_cache(ids, names_filter=site, stop_at_layer=layer + 1)
        found: Tensor = cache[site][0, -1]
        return found

    def weight(layer: int) -> Tensor:
        found: Tensor = model.blocks[layer].mlp.W_in
        return found

    return {"early stop": early_stop, "documented": documented}, weight


def _site(layer: int) -> str:
    return f"blocks.{layer}.mlp.hook_in"


if __name__ == "__main__":
    serve(load)
