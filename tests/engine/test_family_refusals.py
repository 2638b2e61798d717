"""Configurations and weights that no family's walk computes: each is refused with its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, OPTForCausalLM

from schemas.common import DType
from schemas.weight_updates import WeightUpdatesRequest
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.pairs import resolve_pair
from service.engine import Model, drive, load
from service.engine.families import FAMILIES
from service.engine.folder import reading
from service.engine.model import DTYPES
from service.engine.walk import forward
from service.errors import CannotLoad
from tests.analysis.subjects import plan_of
from tests.engine.made import edited, everything, logits_of, relative, worst
from tests.engine.test_walk import IDS
from tests.families import save

Folders = Callable[[str], Path]


def loaded(folder: Path, dtype: DType = "float32") -> Model:
    """The model of a folder on the CPU."""
    return load(str(folder), revision=None, device="cpu", dtype=dtype)


def configured(source: Path, folder: Path, **fields: object) -> Path:
    """A copy of a checkpoint with other fields in its config.json."""
    shutil.copytree(source, folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return folder


def refused(folder: Path, says: str, dtype: DType = "float32") -> None:
    """Loading fails with one sentence that names the folder and the reason."""
    with pytest.raises(CannotLoad) as raised:
        loaded(folder, dtype)
    assert says in raised.value.detail
    assert str(folder) in raised.value.detail
    assert "\n" not in raised.value.detail


def rope(kind: str, **fields: object) -> dict[str, object]:
    """The parameters of a rotary embedding of this type."""
    return {"rope_type": kind, "rope_theta": 500.0, **fields}


LONG: dict[str, Any] = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 4.0}
SWITCHES: list[tuple[str, dict[str, object], str]] = [
    ("gemma3", {"attn_logit_softcapping": 30.0}, "soft-capped"),
    ("gemma3", {"final_logit_softcapping": 30.0}, "soft-capped"),
    ("gemma3", {"use_bidirectional_attention": True}, "attends to later tokens"),
    (
        "gemma3",
        {
            "rope_parameters": {
                "sliding_attention": rope("default"),
                "full_attention": rope("dynamic", factor=2.0),
            }
        },
        "'dynamic'",
    ),
    ("llama", {"rope_parameters": rope("dynamic", factor=2.0)}, "'dynamic'"),
    ("qwen3", {"head_dim": 8, "rope_parameters": rope("longrope", **LONG)}, "'longrope'"),
    ("neox-serial", {"rope_parameters": rope("dynamic", factor=2.0)}, "'dynamic'"),
    ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "'chunked_attention'"),
    ("llama", {"is_causal": False}, "`is_causal`"),
    ("opt", {"do_layer_norm_before": False}, "norms come after"),
    ("opt", {"word_embed_proj_dim": 16}, "embedding is projected"),
    ("opt", {"_remove_final_layer_norm": True}, "no final norm"),
    ("opt-bare", {}, "norms have no weights"),
    ("llama", {"num_hidden_layers": 0}, "no layers"),
    ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized"),
    ("mistral", {"model_type": "mixtral"}, "is a 'mixtral' model; deltaw serves: gpt2, llama"),
    ("gemma3", {"model_type": "gemma3"}, "is a 'gemma3' model; deltaw serves: gpt2, llama"),
    ("qwen2", {"model_type": "qwen2_moe"}, "is a 'qwen2_moe' model; deltaw serves: gpt2, llama"),
    ("gemma3", {"model_type": "gemma2"}, "is a 'gemma2' model; deltaw serves: gpt2, llama"),
    ("llama", {"model_type": "llava"}, "is a 'llava' model; deltaw serves: gpt2, llama"),
]


@pytest.mark.parametrize(
    ("name", "fields", "says"), SWITCHES, ids=[f"{n}-{[*f, 'itself'][0]}" for n, f, _ in SWITCHES]
)
def test_a_switch_that_the_walk_does_not_compute_is_refused(
    name: str, fields: dict[str, object], says: str, tmp_path: Path, folder_of: Folders
) -> None:
    """Soft-capping, mixtures, wrappers, dynamic rotary embeddings and other norms are refused."""
    refused(configured(folder_of(name), tmp_path / "spoilt", **fields), says)


def test_gemma_in_float16_is_refused(folder_of: Folders) -> None:
    """Its stream exceeds float16; the sentence names the other dtypes."""
    refused(folder_of("gemma3"), "set DELTAW_DTYPE to `bfloat16` or `float32`", "float16")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("gpt2", "transformer.h.0.mlp.experts.weight"),
        ("llama", "model.layers.1.self_attn.sinks"),
        ("mistral", "model.layers.0.block_sparse_moe.gate.weight"),
        ("qwen3", "model.layers.1.mlp.shared_expert.weight"),
        ("gemma3", "model.layers.2.per_layer_projection.weight"),
        ("neox-parallel", "gpt_neox.layers.1.mlp.gate.weight"),
        ("opt", "model.decoder.layers.0.fc3.weight"),
    ],
)
def test_a_weight_that_the_configuration_does_not_name_is_refused(
    name: str, tensor: str, tmp_path: Path, folder_of: Folders
) -> None:
    """A tensor of a block that transformers leaves out means another architecture."""
    folder = edited(
        folder_of(name), tmp_path / "more", lambda tensors: tensors.update({tensor: torch.ones(4)})
    )
    refused(folder, tensor)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq"),
        ("neox-parallel", "gpt_neox.layers.0.attention.bias"),
        ("neox-parallel", "gpt_neox.layers.0.attention.masked_bias"),
        ("neox-parallel", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
    ],
)
def test_buffers_of_old_checkpoints_are_no_weights(
    name: str, tensor: str, tmp_path: Path, folder_of: Folders
) -> None:
    """Masks and frequencies that old files store are passed over."""
    folder = edited(
        folder_of(name), tmp_path / "old", lambda tensors: tensors.update({tensor: torch.ones(4)})
    )
    assert loaded(folder).n_layers == 2


@pytest.mark.parametrize(
    ("name", "field"), [("llama", "hidden_act"), ("opt", "activation_function")]
)
def test_an_activation_with_weights_is_refused(name: str, field: str, tmp_path: Path) -> None:
    """PReLU's slope is a weight that no update accounts for."""
    changes: dict[str, Any] = {field: "prelu"}
    with torch.inference_mode(False):
        folder = save(name, tmp_path / "prelu", **changes)
    refused(folder, "activation function has weights")


def test_an_unembedding_with_a_bias_is_refused(
    folder_of: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk adds no bias to logits."""
    biased = nn.Linear(32, 263)
    monkeypatch.setattr(OPTForCausalLM, "get_output_embeddings", lambda _self: biased)
    refused(folder_of("opt"), "unembedding has a bias")


def test_a_switch_that_a_family_forgets_is_found(
    folder_of: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose window is forgotten differs from transformers on the prompt at load."""
    monkeypatch.setitem(FAMILIES, "mistral", FAMILIES["llama"])
    refused(folder_of("mistral"), "its config.json switches on something that deltaw does not")


@pytest.mark.parametrize("name", ["llama", "gemma3", "neox-parallel"])
def test_half_precision_is_computed_as_transformers_does(name: str, tmp_path: Path) -> None:
    """In bfloat16 the logits are those of transformers to its rounding, and checks run in
    float32, where they hold."""
    with torch.inference_mode(False):
        folder = save(name, tmp_path / "half", torch.bfloat16)
    model = loaded(folder, "bfloat16")
    assert model.dtype == DTYPES["bfloat16"] == model.blocks[0].w_in.dtype
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    expected = theirs(torch.tensor([IDS]), use_cache=False).logits[0]
    (found,) = forward(model, [everything(model, IDS)])
    assert relative(logits_of(model, found), expected) < 0.03
    pair = resolve_pair(model, IDS[:9], IDS[9:], None, "last")
    layers = range(int(model.parallel), model.n_layers)
    for form in ("bias", "weights"):
        for one in drive(model, block_checks(model, pair, layers, Procedure(form=form))):
            assert one.verdict == "holds", (form, one)
    pair_of = {"context": list(IDS[:9]), "query": list(IDS[9:])}
    fields: dict[str, Any] = {**pair_of, "include": ["factors", "bias"]}
    for one in drive(model, plan_of(model, WeightUpdatesRequest(**fields))).updates:
        assert one.input.dtype == one.weights[0].output.dtype == torch.float32


def test_tokenizer_that_begins_with_an_unknown_token_is_refused(
    folder_of: Folders, tmp_path: Path
) -> None:
    """A token before every text that has no embedding is refused at load."""
    folder = tmp_path / "opt"
    shutil.copytree(folder_of("opt"), folder)
    file = folder / "tokenizer.json"
    spelled = json.loads(file.read_text())
    (token,) = spelled["added_tokens"]
    spelled["model"]["vocab"][token["content"]] = token["id"] = 300
    for special in spelled["post_processor"]["special_tokens"].values():
        special["ids"] = [300]
    file.write_text(json.dumps(spelled))
    refused(folder, "begins texts with a token that has no embedding")


def test_lack_of_memory_while_reading_keeps_its_sentence() -> None:
    """A lack of memory in a library is not taken for a damaged file."""
    with pytest.raises(MemoryError), reading("a file"):
        raise MemoryError
    with pytest.raises(CannotLoad, match="a file cannot be read"), reading("a file"):
        raise ValueError


def test_embedding_scale_of_bfloat16_is_float32s(tmp_path: Path) -> None:
    """Gemma's scale is rounded in float32: runs in float64 of one file, resident in bfloat16 and in
    float32, are equal to 1e-12."""
    with torch.inference_mode(False):
        folder = save("gemma3", tmp_path, torch.bfloat16)
    reads = [
        forward(model, [everything(model, IDS, None, torch.float64)])[0]
        for model in (loaded(folder), loaded(folder, "bfloat16"))
    ]
    assert worst(*reads) <= 1e-12
