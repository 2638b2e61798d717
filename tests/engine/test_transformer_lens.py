"""Activations compared with TransformerLens, under the names that `/v1/model` publishes for it.

Needs the development extra: `pip install "transformer-lens==4.3.*"`; skipped without it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, GPT2LMHeadModel

from service.api.model import NOTES, TRANSFORMER_LENS
from service.engine import Model, Site
from service.engine.walk import forward
from tests.engine.made import POINTS, everything, logits_of, relative

pytestmark = pytest.mark.slow
IDS = (12, 200, 7, 31, 31, 90, 155, 4, 260, 18)
BOUND = 5e-6


@pytest.fixture(scope="module")
def cache(tiny_folder: Path) -> dict[str, Tensor]:
    """All values that TransformerLens hooks in one forward of the random GPT-2."""
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        pytest.importorskip("transformer_lens")
        bridges: Any = pytest.importorskip("transformer_lens.model_bridge")
        bridge = bridges.TransformerBridge.boot_transformers(
            str(tiny_folder),
            hf_model=GPT2LMHeadModel.from_pretrained(tiny_folder).eval(),
            tokenizer=AutoTokenizer.from_pretrained(tiny_folder),
        )
        logits, hooked = bridge.run_with_cache(torch.tensor([IDS]))
        found = {name: value[0].detach() for name, value in hooked.items()}
    return found | {"logits": logits[0].detach()}


def test_activations_agree_where_hook_points_coincide(
    tiny: Model, cache: dict[str, Tensor]
) -> None:
    """Every named vector agrees at every layer and row, and so do the logits."""
    (read,) = forward(tiny, [everything(tiny, IDS)])
    assert relative(logits_of(tiny, read), cache["logits"]) <= BOUND
    for layer in range(tiny.n_layers):
        for point, name in TRANSFORMER_LENS.items():
            theirs = cache[name.format(layer=layer)].flatten(1)
            assert relative(read[Site(layer, point)], theirs) <= BOUND, (layer, point)


def test_normalized_hooks_are_other_vectors(tiny: Model, cache: dict[str, Tensor]) -> None:
    """`ln1.hook_normalized` and `ln2.hook_normalized` are before gain and bias, so they differ from
    `ln_1_out` and `mlp_in`."""
    assert set(POINTS) - set(TRANSFORMER_LENS) == {"ln_1_out"} <= set(NOTES)
    (read,) = forward(tiny, [everything(tiny, IDS)])
    for layer in range(tiny.n_layers):
        for point, name in (("mlp_in", "ln2"), ("ln_1_out", "ln1")):
            normed = read[Site(layer, point)]  # type: ignore[arg-type]
            norm = getattr(tiny.blocks[layer], name.replace("ln", "ln_"))
            before = cache[f"blocks.{layer}.{name}.hook_normalized"]
            assert relative(normed, before) > 1e-2
            assert relative(normed, before * norm.gain + norm.bias) <= BOUND
