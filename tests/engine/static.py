"""Random static updates of every layer, for the service and for the oracle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from service.engine import Model
from service.theory import LowRank, StaticUpdate
from tests.oracle import Patch


def updates_of(model: Model, seed: int, size: float = 0.3) -> dict[int, StaticUpdate]:
    """Changes of both weights (ranks 3 and 2), of the output and of a gain, float64.

    The last layer's first weight, and the first layer's second one, stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * size

    found = {}
    for layer, block in enumerate(model.blocks):
        d_model, d_mlp = block.w_out.width, block.w_out.weight.shape[0]
        first = LowRank(drawn(3, d_model), drawn(3, block.w_in.width))
        second = LowRank(drawn(2, d_mlp), drawn(2, d_model))
        found[layer] = StaticUpdate(
            w_in=None if layer == model.n_layers - 1 else first,
            w_out=None if layer == 0 else second,
            bias=drawn(d_model),
            gain=None if block.post_mlp is None else 1.0 + drawn(d_model),
        )
    return found


def oracles(updates: Mapping[int, StaticUpdate]) -> dict[int, Patch]:
    """The same changes as dense NumPy matrices."""
    return {
        layer: Patch(
            w_in=None if one.w_in is None else one.w_in.dense().numpy(),
            w_out=None if one.w_out is None else one.w_out.dense().numpy(),
            output_bias=None if one.bias is None else one.bias.numpy(),
            gain=None if one.gain is None else one.gain.numpy(),
        )
        for layer, one in updates.items()
    }
