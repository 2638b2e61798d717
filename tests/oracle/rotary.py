"""The tables of rotary positions, which the oracle takes as given, like weights.

A checkpoint is trained with the cosines and sines that transformers forms in float32. They come
from its own rotary module, built from the folder's configuration.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from .checkpoint import Array

Tables = Callable[[Sequence[int], str], tuple[Array, Array]]
"""From positions (T) and a layer's type to its cosines and sines (T, rotated width of a head)."""


def rotary_tables(folder: Path) -> Tables | None:
    """The tables of a checkpoint folder; None where transformers has no rotary module for it."""
    config = AutoConfig.from_pretrained(folder)
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    module = sys.modules[model_class.__module__]
    kinds = [kind for name, kind in vars(module).items() if name.endswith("RotaryEmbedding")]
    if not kinds:
        return None
    rotary = kinds[0](config)

    def tables(positions: Sequence[int], layer_type: str) -> tuple[Array, Array]:
        by_type = (layer_type,) if hasattr(rotary, "layer_types") else ()
        places = torch.tensor([list(positions)])
        cos, sin = rotary(torch.zeros(1, dtype=torch.float32), places, *by_type)
        return cos[0].numpy().astype(np.float64), sin[0].numpy().astype(np.float64)

    return tables
