"""The description of a family, and the layers that are read from transformers' modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from schemas.activations import HookPoint
from service.engine.block import Block
from service.engine.layers import Affine, Norm, affine
from service.engine.rotary import Rotary

Side = Literal["input", "output"]
Rotaries = Mapping[str, Rotary]
"""The rotary embedding of each type of layer. If all layers share one, its name is empty."""


@dataclass(frozen=True)
class Ends:
    """The tensors of a model outside its blocks.

    Args:
        token_embedding: (vocab, d_model).
        final_norm: The norm before the unembedding.
        position_embedding: (n_positions, d_model); None where positions are relative.
        embedding_scale: Factor of the token embedding, 0-dimensional float32; None: 1.
        rotaries: The rotary embeddings of the layers.
    """

    token_embedding: Tensor
    final_norm: Norm
    position_embedding: Tensor | None = None
    embedding_scale: Tensor | None = None
    rotaries: Rotaries = field(default_factory=dict)


def served(_config: Any, _dtype: torch.dtype) -> None:
    """Refuse no configuration."""


@dataclass(frozen=True)
class Family:
    """The layout of an architecture. Paths in a block begin at the block's module.

    Args:
        blocks: Path of the list of blocks.
        first_weights: Paths of the modules that hold the MLP's first weights; two if it is gated.
        second_weight: Path of the module that holds its second weight.
        module_paths: Path of each hook point in a block, and the side of the module.
        block: Returns a block from its module, the configuration, the layer and the rotaries.
        ends: Returns the tensors of a loaded model outside its blocks.
        post_norm: Path of the norm after the MLP, if there is one.
        gain_offset: The gain of that norm minus the stored one.
        fan_in_fan_out: Whether weights are stored (d_in, d_out), and not (d_out, d_in).
        refuse: Returns the reason why a configuration cannot be served in a dtype, or None.
    """

    blocks: str
    first_weights: tuple[str, ...]
    second_weight: str
    module_paths: Mapping[HookPoint, tuple[str, Side]]
    block: Callable[[Any, Any, int, Rotaries], Block]
    ends: Callable[[Any], Ends]
    post_norm: str | None = None
    gain_offset: float = 0.0
    fan_in_fan_out: bool = False
    refuse: Callable[[Any, torch.dtype], str | None] = served


def linear(*modules: nn.Linear) -> Affine:
    """The affine maps of modules that share one input, side by side."""
    if len(modules) == 1:
        return affine(modules[0].weight.T, modules[0].bias)
    weights: list[Tensor] = [module.weight for module in modules]
    biases: list[Tensor] = [module.bias for module in modules if module.bias is not None]
    weight = torch.cat(weights).T
    return affine(weight, torch.cat(biases) if biases else None)


def layer_norm(module: nn.LayerNorm) -> Norm:
    """A layer norm, with or without a bias."""
    bias = None if module.bias is None else module.bias.clone()
    return Norm(module.weight.clone(), bias, module.eps)


def rms_norm(module: Any, offset: float = 0.0) -> Norm:
    """An RMS norm whose effective gain is the stored one plus `offset`."""
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    if not offset:
        return Norm(module.weight.clone(), None, eps, rms=True)
    exact = module.weight.double() + offset
    # The gain is float32 even in half precision, as in Gemma.
    return Norm(exact.float(), None, eps, rms=True, exact=exact)


def activation(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """An activation function."""
    # transformers computes GPT-2's form of GELU in eight element-wise calls; torch needs one.
    tanh = type(module).__name__ in ("NewGELUActivation", "GELUTanh")
    return nn.GELU(approximate="tanh") if tanh else module


def rotaries(module: Any, config: Any) -> Rotaries:
    """The rotary embeddings of transformers' module, one for all layers or one per type."""
    if hasattr(module, "inv_freq"):
        return {"": _rotary(module, "")}
    return {kind: _rotary(module, f"{kind}_") for kind in set(config.layer_types)}


def _rotary(module: Any, prefix: str) -> Rotary:
    frequencies = getattr(module, f"{prefix}inv_freq").float().cpu().clone()
    return Rotary(frequencies, float(getattr(module, f"{prefix}attention_scaling")))


def window(config: Any, layer: int) -> int | None:
    """The sliding window of a layer, by its type."""
    sliding = config.layer_types[layer] == "sliding_attention"
    return int(config.sliding_window) if sliding else None
