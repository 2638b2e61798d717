"""docs/families.md says which families are served, and what is refused, as the service does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from docs.site import ROOT
from schemas.common import DType
from service.analysis.pairs import resolve_baseline
from service.engine import Model, load
from service.engine.families import FAMILIES
from service.errors import CannotLoad
from tests.analysis.subjects import Subject
from tests.families import VARIANTS, save

TEXT = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
ROPE = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}
QUANTIZED = {"quant_method": "gptq", "bits": 4}
REFUSED: tuple[tuple[str, dict[str, Any], DType], ...] = (
    ("llama", {"rope_parameters": ROPE}, "float32"),
    ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "float32"),
    ("llama", {"is_causal": False}, "float32"),
    ("llama", {"quantization_config": QUANTIZED}, "float32"),
    ("gpt2", {"add_cross_attention": True}, "float32"),
    ("gemma3", {"final_logit_softcapping": 30.0}, "float32"),
    ("gemma3", {"attn_logit_softcapping": 30.0}, "float32"),
    ("gemma3", {"use_bidirectional_attention": True}, "float32"),
    ("gemma3", {}, "float16"),
    ("opt", {"do_layer_norm_before": False}, "float32"),
    ("opt", {"word_embed_proj_dim": 16}, "float32"),
    ("opt", {"_remove_final_layer_norm": True}, "float32"),
    ("opt-bare", {}, "float32"),
    ("gpt2", {"activation_function": "prelu"}, "float32"),
)
"""A variant, changes of its config.json, and the dtype to load it in."""
WRITTEN = ("quantization_config", "layer_types")
"""Fields that transformers would not save a random model with."""


def rows() -> dict[str, list[str]]:
    """The cells of both tables of families by `model_type`, without the examples of models."""
    found: dict[str, list[str]] = {}
    for line in TEXT.splitlines():
        if line.startswith("| `") and not line.startswith("| `model_type`"):
            family, *cells = line.strip("| ").split(" | ")
            found.setdefault(family.strip("`"), []).extend(cells)
    return {family: cells[1:] for family, cells in found.items()}


def described(model: Model) -> list[str]:
    """The cells that describe a model."""
    family = model.family
    return [
        ", ".join(f"`{path}`" for path in family.first_weights),
        f"`{family.second_weight}`",
        "absolute" if model.absolute_positions else "relative",
        *("yes" if told else "no" for told in (model.gated, model.parallel, model.post_norms)),
        f"`{resolve_baseline(model, None)}`",
    ]


def test_table_has_the_served_families() -> None:
    """The table has one row for each family that is served, in their order."""
    assert list(rows()) == list(FAMILIES)


def test_row_describes_a_loaded_model(variant_name: str, variant: Subject) -> None:
    """The row of a family is true of every variant, and the default baseline where it has an
    anchor."""
    row = rows()[VARIANTS[variant_name].config().model_type]
    found = described(variant.model)
    if row[4] == "yes or no":
        found[4] = row[4]
    if variant.model.anchor is None:
        found[6] = row[6]
    assert found == row


@pytest.mark.parametrize(("name", "changes", "dtype"), REFUSED)
def test_refusal_is_on_the_page(
    name: str, changes: dict[str, Any], dtype: DType, tmp_path: Path
) -> None:
    """The page has the sentence with which the service refuses a checkpoint."""
    written = {name: value for name, value in changes.items() if name not in WRITTEN}
    with torch.inference_mode(False):
        save(name, tmp_path, **written)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **changes}))
    with pytest.raises(CannotLoad) as refused:
        load(str(tmp_path), revision=None, device="cpu", dtype=dtype)
    assert refused.value.detail.partition(" cannot be served: ")[2] in TEXT
