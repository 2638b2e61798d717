"""Adapters in PEFT's format: each family's parameter names and storage order.

A layer's updates become LoRA factors of rank r: `lora_A` is (r, d_in), `lora_B` is (d_out, r), and
`lora_alpha` = r, so that ΔW = (lora_B·lora_A)ᵀ. Layers of a smaller rank are padded with zeros.

- `target_modules` has the full names of modules. A bare `c_proj` would match attention's module
  too, and PEFT would add factors to every layer that matches, which the file of a partial patch
  lacks.
- A bias at the block's output is the bias of `lora_B` of the second weight (`lora_bias`). PEFT then
  expects one for each module. `bias="lora_only"` would replace the resident bias instead.
- LoRA cannot hold the gain of a norm after the MLP: PEFT replaces the whole norm
  (`modules_to_save`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from service.engine import Model
from service.theory.static_update import LowRank, StaticUpdate

PREFIX = "base_model.model."
"""Path of the model within PEFT's wrapper, which begins every parameter name in the file."""
Tensors = dict[str, Tensor]
NOTHING = torch.zeros(1)


def to_peft(model: Model, updates: Mapping[int, StaticUpdate]) -> tuple[Tensors, dict[str, Any]]:
    """Convert updates to the tensors and the configuration of a PEFT adapter.

    Args:
        model: The model that the updates belong to.
        updates: The update of each patched layer, float32.

    Returns:
        The tensors of `adapter_model.safetensors` and the object of `adapter_config.json`.

    Raises:
        ValueError: A bias where a norm follows the MLP. PEFT adds a bias before that norm.
    """
    if model.post_norms and any(update.bias is not None for update in updates.values()):
        raise ValueError("PEFT has no place for a bias behind the norm after the MLP")
    factors: dict[str, LowRank] = {}
    biases: dict[str, Tensor] = {}
    gains: dict[str, Tensor] = {}
    for layer, update in sorted(updates.items()):
        if (w_in := update.w_in) is not None:
            for weight in model.first_weights(layer):
                output = w_in.output[:, weight.columns]
                factors[_module(weight.name)] = LowRank(w_in.input, output)
        second = _module(model.second_weight(layer))
        if update.w_out is not None:
            factors[second] = update.w_out
        if (bias := update.bias) is not None:
            biases[second] = bias
            nothing = LowRank(bias.new_zeros(1, model.d_mlp), bias.new_zeros(1, model.d_model))
            factors.setdefault(second, nothing)
        if (gain := update.gain) is not None and (name := model.post_norm_gain(layer)) is not None:
            gains[name] = (gain.double() - model.family.gain_offset).to(gain.dtype)
    rank = max(len(one.input) for one in factors.values())
    tensors: Tensors = {}
    for module, one in factors.items():
        tensors[f"{module}.lora_A.weight"] = _padded(one.input, rank)
        tensors[f"{module}.lora_B.weight"] = _padded(one.output, rank).T
        if biases:
            nowhere = one.output.new_zeros(one.output.shape[1])
            tensors[f"{module}.lora_B.bias"] = biases.get(module, nowhere)
    named = {PREFIX + name: tensor for name, tensor in {**tensors, **gains}.items()}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.id if model.revision else None,
        "revision": model.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": model.family.fan_in_fan_out,
        "target_modules": list(factors),
        "modules_to_save": [_module(name) for name in gains] or None,
        # PEFT before 0.14 refuses a configuration with a field that it does not know.
        **({"lora_bias": True} if biases else {}),
    }
    return {name: tensor.cpu().contiguous().clone() for name, tensor in named.items()}, config


def from_peft(
    model: Model, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[int, StaticUpdate]:
    """Convert an adapter that `to_peft` made back to updates.

    Args:
        model: The model that the adapter belongs to.
        tensors: The tensors of `adapter_model.safetensors`.
        config: The object of `adapter_config.json`.

    Returns:
        The update of each patched layer, float32, on the model's device.

    Raises:
        ValueError: The adapter is of another kind, or for another model.
    """
    left = {name.removeprefix(PREFIX): part.to(model.device) for name, part in tensors.items()}
    if config["peft_type"] != "LORA" or config["lora_alpha"] != config["r"]:
        raise ValueError("the adapter is not made of LoRA factors with scale 1")
    updates: dict[int, StaticUpdate] = {}
    for layer in range(model.n_layers):
        first = [_module(weight.name) for weight in model.first_weights(layer)]
        second = _module(model.second_weight(layer))
        if any(bool(left.pop(f"{one}.lora_B.bias", NOTHING).any()) for one in first):
            raise ValueError(f"the first weights of layer {layer} have a bias")
        update = StaticUpdate(
            w_in=_side_by_side([_taken(left, one) for one in first]),
            w_out=_taken(left, second),
            bias=left.pop(f"{second}.lora_B.bias", None),
            gain=_shifted(left.pop(model.post_norm_gain(layer) or "", None), model),
        )
        if any(part is not None for part in vars(update).values()):
            updates[layer] = update
    if left:
        raise ValueError(f"the model has no parameter for {min(left)}")
    return updates


def _module(parameter: str) -> str:
    """Path of the module that holds a parameter."""
    return parameter.rpartition(".")[0]


def _padded(factor: Tensor, rank: int) -> Tensor:
    """A factor (at most rank, width) with rows of zeros up to the rank."""
    return torch.nn.functional.pad(factor, (0, 0, 0, rank - len(factor)))


def _taken(left: Tensors, module: str) -> LowRank | None:
    """Take the factors of a module from the tensors that are left. None if they are absent or zero.

    Raises:
        ValueError: One factor is there without the other.
    """
    a, b = (left.pop(f"{module}.lora_{factor}.weight", None) for factor in "AB")
    if (a is None) != (b is None):
        raise ValueError(f"{module} has one factor without the other")
    return LowRank(a, b.T) if a is not None and b is not None and bool(b.any()) else None


def _side_by_side(parts: Sequence[LowRank | None]) -> LowRank | None:
    """Join the updates of all first weights, whose input factors are equal. None without updates.

    Raises:
        ValueError: The input factors differ, or a weight has none.
    """
    found = [part for part in parts if part is not None]
    if not found:
        return None
    if len(found) < len(parts) or not all(torch.equal(found[0].input, one.input) for one in found):
        raise ValueError("the first weights of a layer have different input factors")
    return LowRank(found[0].input, torch.cat([one.output for one in found], 1))


def _shifted(stored: Tensor | None, model: Model) -> Tensor | None:
    """The gain by which a norm multiplies, from the stored parameter, which may have an offset."""
    if stored is None:
        return None
    return (stored.double() + model.family.gain_offset).to(stored.dtype)
