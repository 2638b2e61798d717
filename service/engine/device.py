"""The device that holds the model: the use of its memory, and how many rows suit it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from service.engine.model import Model

ROW_BUDGETS: Mapping[str, int] = {"cpu": 512, "cuda": 4096}
"""Maximum rows of one forward, by type of device. More rows need more working memory; a GPU needs
many to be fully used."""
LEAST_CACHED: Mapping[str, int] = {"cpu": 1, "cuda": 1024}
"""Minimum rows of a context that is cached, by type of device. On a GPU a pack with known rows
launches its blocks one by one, which takes as long as replaying about a thousand rows of GPT-2
small (an estimate: it has not been measured)."""


def enter(device: torch.device) -> None:
    """Make a GPU the current device of this thread: streams and CUDA graphs use that one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def allocator_bytes(device: torch.device) -> dict[str, int]:
    """Bytes of a GPU's memory by kind; empty for a CPU.

    `allocated` is the memory of all tensors, `reserved` what torch has taken from the device.
    """
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
    }


def weight_bytes(model: Model) -> int:
    """Bytes of the resident weights. Tied ones count once."""
    distinct = {id(tensor): tensor for tensor in _tensors(model)}.values()
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct)


def _tensors(part: Any) -> Iterator[Tensor]:
    """The tensors of a dataclass, with those of its parts."""
    if isinstance(part, Tensor):
        yield part
    elif is_dataclass(part):
        for each in fields(part):
            yield from _tensors(getattr(part, each.name))
    elif isinstance(part, tuple | Mapping):
        for one in part.values() if isinstance(part, Mapping) else part:
            yield from _tensors(one)
