"""Adapters for tests: random updates of a model, their PEFT folder, and their place in a store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from schemas.adapters import FILES, Adapter, AdapterLayer
from service.adapters.peft import from_peft, to_peft
from service.adapters.store import Store
from service.engine import Model
from service.theory.static_update import LowRank, StaticUpdate


def random_updates(model: Model, *, bias: bool, seed: int = 0) -> dict[int, StaticUpdate]:
    """Large random updates of all layers but the first, whose parts and ranks differ by layer.

    Args:
        model: The model.
        bias: Whether the last layer has a bias at its output.
        seed: Seed of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        values: Tensor = torch.randn(*shape, generator=generator) / float(shape[-1]) ** 0.5
        return values

    def low(rank: int, d_in: int, d_out: int) -> LowRank:
        return LowRank(noise(rank, d_in), noise(rank, d_out))

    d_in, d_mlp, width = model.d_model, model.d_mlp, model.blocks[0].w_in.width
    last = model.n_layers - 1
    updates = {
        layer: StaticUpdate(w_in=low(2, d_in, width), w_out=low(3, d_mlp, d_in))
        for layer in range(1, last)
    }
    norm = model.blocks[last].post_mlp
    updates[last] = StaticUpdate(
        w_in=low(1, d_in, width),
        w_out=None if bias else low(2, d_mlp, d_in),
        bias=noise(d_in) if bias else None,
        gain=None if norm is None else norm.gain + noise(d_in),
    )
    return updates


def write_folder(model: Model, updates: Mapping[int, StaticUpdate], folder: Path) -> Path:
    """Write updates as a PEFT folder."""
    tensors, config = to_peft(model, updates)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    return folder


def read_folder(model: Model, folder: Path) -> dict[int, StaticUpdate]:
    """Read the updates of a PEFT folder."""
    config = json.loads((folder / "adapter_config.json").read_text())
    return from_peft(model, load((folder / "adapter_model.safetensors").read_bytes()), config)


def record_of(model: Model, adapter_id: str, **changes: Any) -> Adapter:
    """The answer of an adapter that was made."""
    whole = Adapter(
        model=model.summary,
        id=adapter_id,
        kind="token",
        name=None,
        created="2026-01-01T00:00:00Z",
        exact=True,
        files=FILES,
        bytes=1,
        baseline="matched",
        position_shift=0,
        form="weights",
        peft_only=False,
        layers=[AdapterLayer(1, 1.0, 1, None)],
        verified=1e-7,
        positions=[0],
        condition=1.0,
    )
    return replace(whole, **changes)


def stored(store: Store, model: Model, adapter_id: str, **changes: Any) -> Adapter:
    """Store a random adapter under an id."""
    draft = store.draft(model, random_updates(model, bias=False))
    return store.keep(draft, record_of(model, adapter_id, **changes))
