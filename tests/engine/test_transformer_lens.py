"""Activations compared with TransformerLens, under the names that `/v1/model` publishes for it.

Needs the development extra: `pip install "transformer-lens==4.3.*"`; skipped without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.api.model import NOTES, TRANSFORMER_LENS, hook_point_info
from service.engine import Model, Site, load
from service.engine.walk import forward
from tests.engine.made import everything, logits_of, relative
from tests.families import save

pytestmark = pytest.mark.slow
IDS = (12, 200, 7, 31, 31, 90, 155, 4, 260, 18)
BOUND = 5e-6
VARIANTS = (
    "gpt2",
    "llama",
    "qwen3",
    "mistral",
    "gemma3",
    "neox-parallel",
    "neox-serial",
    "opt",
)


def hooked(folder: Path, ids: Sequence[int]) -> dict[str, Tensor]:
    """All values that TransformerLens hooks in one forward of a checkpoint, and the logits."""
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        pytest.importorskip("transformer_lens")
        bridges: Any = pytest.importorskip("transformer_lens.model_bridge")
        bridge = bridges.TransformerBridge.boot_transformers(
            str(folder),
            hf_model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
            tokenizer=AutoTokenizer.from_pretrained(folder),
        )
        logits, cached = bridge.run_with_cache(torch.tensor([ids]))
        found = {name: value[0].detach() for name, value in cached.items()}
    return found | {"logits": logits[0].detach()}


@pytest.fixture(scope="module")
def cache(tiny_folder: Path) -> dict[str, Tensor]:
    """All values that TransformerLens hooks in one forward of the random GPT-2."""
    return hooked(tiny_folder, IDS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_names_hold_in_every_family(variant: str, tmp_path: Path) -> None:
    """Each vector that `/v1/model` names agrees at every layer and row, and so do the logits. The
    stream between attention and MLP of a parallel block has no name, and is absent there."""
    with torch.inference_mode(False):
        folder = save(variant, tmp_path)
    theirs = hooked(folder, IDS)
    model = load(str(folder), revision=None, device="cpu", dtype="float32")
    (read,) = forward(model, [everything(model, IDS)])
    assert relative(logits_of(model, read), theirs["logits"]) <= BOUND
    names = {point: hook_point_info(model, point).transformer_lens for point in model.hook_points}
    unnamed = {point for point, name in names.items() if name is None}
    assert unnamed == {"ln_1_out", "resid_mid"} if model.parallel else {"ln_1_out"}
    assert ("blocks.0.hook_resid_mid" in theirs) == (not model.parallel)
    for layer in range(model.n_layers):
        for point in names.keys() - unnamed:
            value = theirs[TRANSFORMER_LENS[point].format(layer=layer)].flatten(1)
            assert relative(read[Site(layer, point)], value) <= BOUND, (layer, point)


def test_normalized_hooks_are_other_vectors(tiny: Model, cache: dict[str, Tensor]) -> None:
    """`ln1.hook_normalized` and `ln2.hook_normalized` are before gain and bias, so they differ from
    `ln_1_out` and `mlp_in`."""
    assert set(tiny.hook_points) - set(TRANSFORMER_LENS) == {"ln_1_out"} <= set(NOTES)
    (read,) = forward(tiny, [everything(tiny, IDS)])
    for layer in range(tiny.n_layers):
        block = tiny.blocks[layer]
        norms: Any = (("mlp_in", "ln2", block.pre_mlp), ("ln_1_out", "ln1", block.pre_attn))
        for point, name, norm in norms:
            normed = read[Site(layer, point)]
            before = cache[f"blocks.{layer}.{name}.hook_normalized"]
            assert relative(normed, before) > 1e-2
            assert relative(normed, before * norm.gain + norm.bias) <= BOUND
