"""Checkpoint folders derived from others, and the transformers model of a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from schemas.activations import HookPoint
from service.engine import Activations, Model, Run, Site

POINTS: tuple[HookPoint, ...] = tuple(
    point for point in get_args(HookPoint) if point != "mlp_pre_linear"
)
"""The hook points of a model without a gate."""


def edited(source: Path, folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a checkpoint whose stored tensors `edit` has changed."""
    shutil.copytree(source, folder)
    file = folder / "model.safetensors"
    with torch.inference_mode(False):
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        edit(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


def with_nan(source: Path, folder: Path, name: str) -> Path:
    """A copy of a checkpoint with one NaN in the named tensor."""

    def plant(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[0] = float("nan")

    return edited(source, folder, plant)


def reference(folder: Path, dtype: torch.dtype) -> Any:
    """The folder's model in transformers, with eager attention."""
    with torch.inference_mode(False):
        model = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager")
        return model.to(dtype).eval()


def every_site(model: Model, rows: Sequence[int]) -> dict[Site, Sequence[int]]:
    """All hook points of all layers at these rows."""
    sites = [Site(layer, point) for layer in range(model.n_layers) for point in model.hook_points]
    return dict.fromkeys(sites, rows)


def logits_of(model: Model, read: Activations) -> Tensor:
    """The logits from the last block's output at the rows that were read."""
    return model.logits(read[Site(model.n_layers - 1, "resid_post")])


def everything(
    model: Model,
    ids: Sequence[int],
    positions: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> Run:
    """A run that reads every site at each of its rows."""
    rows = range(len(ids))
    return Run(ids, rows if positions is None else positions, every_site(model, rows), dtype)


def relative(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖/‖expected‖ of whole tensors, in float64."""
    truth = expected.double()
    return float((actual.double() - truth).norm() / truth.norm())


def worst(found: Mapping[Site, Tensor], expected: Mapping[Site, Tensor]) -> float:
    """The largest relative error over all sites."""
    assert found.keys() == expected.keys()
    return max(relative(found[site], expected[site]) for site in expected)


def resident(model: Model) -> dict[str, Tensor]:
    """A copy of every resident tensor, by name."""
    named = {
        "wte": model.ends.token_embedding,
        "wpe": model.ends.position_embedding,
        "ln_f.gain": model.ends.final_norm.gain,
        "ln_f.bias": model.ends.final_norm.bias,
        "unembedding": model.unembedding,
    }
    for layer, block in enumerate(model.blocks):
        for part in ("pre_attn", "pre_mlp"):
            norm = getattr(block, part)
            named |= {f"{layer}.{part}.gain": norm.gain, f"{layer}.{part}.bias": norm.bias}
        for part in ("queries", "keys_values", "attn_out", "w_in", "w_out"):
            affine = getattr(block, part)
            named |= {f"{layer}.{part}.weight": affine.weight, f"{layer}.{part}.bias": affine.bias}
    return {name: tensor.detach().clone() for name, tensor in named.items() if tensor is not None}


def unchanged(model: Model, before: Mapping[str, Tensor]) -> bool:
    """Whether every resident tensor is bit-equal to the one in `before`."""
    return all(torch.equal(tensor, before[name]) for name, tensor in resident(model).items())
