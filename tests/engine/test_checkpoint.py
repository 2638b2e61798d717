"""Checkpoints: what is loaded, exactly, and what is refused, with the reason."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM

from service.engine import Model, load
from service.engine.block import Block
from service.engine.walk import forward
from tests.checkpoints import save_tiny
from tests.engine.made import edited, everything, logits_of, reference, relative, worst
from tests.oracle import GPT2
from tests.oracle import Block as OracleBlock

IDS = [5, 99, 200, 17, 5, 42]


def load_float32(folder: Path) -> Model:
    """A folder, resident in float32 on the CPU."""
    return load(str(folder), revision=None, device="cpu", dtype="float32")


def same(tensor: Tensor | None, array: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bool:
    """Whether a resident tensor holds these very numbers."""
    assert tensor is not None
    return bool(np.array_equal(tensor.double().numpy(), array))


def _beside(block: Block, part: str) -> Tensor:
    """Queries, keys and values side by side, as the file has them."""
    return torch.cat([getattr(block.queries, part), getattr(block.keys_values, part)], -1)


def _abreast(block: OracleBlock, part: str) -> NDArray[np.float64]:
    """The oracle's queries, keys and values side by side."""
    maps = (block.queries, block.keys, block.values)
    return np.concatenate([getattr(one, part) for one in maps], -1)


def oracles_weights(model: Model, oracle: GPT2) -> bool:
    """Whether every weight is the one that the oracle's own parser read from the file."""
    assert oracle.positions is not None
    pairs = [
        (model.ends.token_embedding, oracle.embedding),
        (model.ends.position_embedding, oracle.positions),
        (model.ends.final_norm.gain, oracle.final_norm.gain),
        (model.unembedding, oracle.unembedding),
    ]
    for block, theirs in zip(model.blocks, oracle.blocks, strict=True):
        pairs += [
            (block.pre_attn.gain, theirs.pre_attn.gain),
            (block.pre_attn.bias, theirs.pre_attn.bias),
            (_beside(block, "weight"), _abreast(theirs, "weight")),
            (_beside(block, "bias"), _abreast(theirs, "bias")),
            (block.attn_out.weight, theirs.attn_out.weight),
            (block.pre_mlp.gain, theirs.pre_mlp.gain),
            (block.w_in.weight, theirs.first.weight),
            (block.w_in.bias, theirs.first.bias),
            (block.w_out.weight, theirs.second.weight),
            (block.w_out.bias, theirs.second.bias),
        ]
    return all(same(*pair) for pair in pairs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a tiny checkpoint of some configuration."""

    def save(**config: object) -> Path:
        with torch.inference_mode(False):
            return save_tiny(tmp_path_factory.mktemp("saved"), **config)  # type: ignore[arg-type]

    return save


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_weights_are_resident_to_the_bit(
    saved: Callable[..., Path], dtype: torch.dtype
) -> None:
    """Weights stored in any dtype are resident in float32 with the numbers of the file."""
    folder = saved(dtype=dtype)
    model = load_float32(folder)
    assert model.dtype == torch.float32
    assert oracles_weights(model, GPT2(folder))
    assert not any(block.w_in.weight.requires_grad for block in model.blocks)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_residents_are_the_rounded_weights(tiny_folder: Path, name: str) -> None:
    """`dtype` is that of the resident weights, and of a run that names none."""
    model = load(str(tiny_folder), revision=None, device="cpu", dtype=name)  # type: ignore[arg-type]
    full = load_float32(tiny_folder)
    assert torch.equal(model.blocks[1].w_in.weight, full.blocks[1].w_in.weight.to(model.dtype))
    assert model.dtype == getattr(torch, name)
    read = forward(model, [everything(model, IDS)])[0]
    assert {tensor.dtype for tensor in read.values()} == {model.dtype}


def test_the_bundled_model_is_as_stored(bundled: Model, bundled_oracle: GPT2) -> None:
    """So are the weights of the model that comes with the service."""
    assert (bundled.id, bundled.revision) == ("bundled", None)
    assert oracles_weights(bundled, bundled_oracle)


def test_what_is_known_of_a_model(tiny: Model, tiny_folder: Path) -> None:
    """Its sizes are those of its config.json, its digest is sha256 over the safetensors file."""
    config = json.loads((tiny_folder / "config.json").read_text())
    assert (tiny.n_layers, tiny.d_model) == (config["n_layer"], config["n_embd"])
    assert (tiny.n_positions, tiny.vocab_size) == (config["n_positions"], config["vocab_size"])
    assert (tiny.d_mlp, tiny.architecture) == (4 * tiny.d_model, "GPT2LMHeadModel")
    stored = hashlib.sha256((tiny_folder / "model.safetensors").read_bytes()).hexdigest()
    assert tiny.weights_digest == f"sha256:{stored}"


def test_shards_are_one_model(tmp_path: Path, tiny: Model, tiny_folder: Path) -> None:
    """A sharded checkpoint is the same model; its digest runs over all shards by name."""
    folder = tmp_path / "shards"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    reference(tiny_folder, torch.float32).save_pretrained(folder, max_shard_size="60KB")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    model = load_float32(folder)
    assert oracles_weights(model, GPT2(tiny_folder))
    joined = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert model.weights_digest == f"sha256:{joined}" != tiny.weights_digest


def test_weight_norms_are_numpys(tiny: Model, tiny_oracle: GPT2) -> None:
    """Frobenius and spectral norm of c_fc are those of NumPy's SVD to 1e-12, each time."""
    for layer, block in enumerate(tiny_oracle.blocks):
        values = np.linalg.svd(block.w_in, compute_uv=False)
        ((frobenius, spectral),) = tiny.weight_norms[layer]
        assert frobenius == pytest.approx(float(np.linalg.norm(values)), rel=1e-12)
        assert spectral == pytest.approx(float(values[0]), rel=1e-12)
        assert tiny.weight_norms[layer] == ((frobenius, spectral),)


VARIANTS: list[dict[str, object]] = [
    {"tie_word_embeddings": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    {"n_inner": 48},
    {"n_inner": 20},
    {"activation_function": "gelu"},
    {"activation_function": "relu"},
    {"activation_function": "gelu_pytorch_tanh"},
    {"activation_function": "gelu_10"},
    {"activation_function": "silu"},
    {"activation_function": "relu2"},
    {"attn_pdrop": 0.9, "embd_pdrop": 0.9, "resid_pdrop": 0.9},
    {"sliding_window": 2, "attention_chunk_size": 2, "attn_implementation": "eager"},
    {"quantization_config": None, "is_causal": True},
    {"layer_norm_epsilon": 0.1},
    {"n_layer": 1, "n_head": 1},
    {"special": False},
]


@pytest.mark.parametrize("config", VARIANTS, ids=lambda config: "-".join(map(str, config.items())))
def test_a_variant_computes_what_transformers_computes(
    saved: Callable[..., Path], config: dict[str, object]
) -> None:
    """Untied heads, scalings, widths, activations, ε: the logits are transformers' in float64."""
    folder = saved(**config)
    model, theirs = load_float32(folder), reference(folder, torch.float64)
    expected = theirs(input_ids=torch.tensor([IDS]), output_hidden_states=True)
    read = forward(model, [everything(model, IDS, None, torch.float64)])[0]
    assert relative(logits_of(model, read), expected.logits[0]) <= 1e-12
    plain = forward(model, [everything(model, IDS)])[0]
    assert worst(plain, read) <= 5e-6
    assert model.d_mlp == config.get("n_inner", 4 * model.d_model)


def test_an_untied_head_is_its_own(saved: Callable[..., Path]) -> None:
    """The unembedding is then lm_head, not the token embedding; tied it is that very tensor."""
    untied, tied = load_float32(saved(tie_word_embeddings=False)), load_float32(saved())
    assert not torch.equal(untied.unembedding, untied.ends.token_embedding)
    assert tied.unembedding.data_ptr() == tied.ends.token_embedding.data_ptr()


def test_reorder_and_upcast_attn_is_the_same_attention(saved: Callable[..., Path]) -> None:
    """transformers heeds it under eager attention only, as another rounding of the same logits."""
    folder = saved(reorder_and_upcast_attn=True)
    model, upcast = load_float32(folder), reference(folder, torch.float32)
    read = forward(model, [everything(model, IDS)])[0]
    expected = upcast(input_ids=torch.tensor([IDS])).logits[0]
    assert relative(logits_of(model, read), expected) <= 5e-6
    with torch.inference_mode(False):
        sdpa = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").double()
    exact = forward(model, [everything(model, IDS, None, torch.float64)])[0]
    expected = sdpa(input_ids=torch.tensor([IDS])).logits[0]
    assert relative(logits_of(model, exact), expected) <= 1e-12


def test_a_stored_head_that_differs_from_tied_embeddings(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    """The unembedding is then the one that transformers uses."""

    def add(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = 2.0 * tensors["transformer.wte.weight"]

    folder = edited(saved(), tmp_path / "both", add)
    model, theirs = load_float32(folder), reference(folder, torch.float64)
    read = forward(model, [everything(model, IDS, None, torch.float64)])[0]
    expected = theirs(input_ids=torch.tensor([IDS])).logits[0]
    assert relative(logits_of(model, read), expected) <= 1e-12


OTHERS = ("model.fp16", "consolidated", "adapter_model", "optimizer", "model-00001-of-00002")


def test_other_safetensors_files_do_not_count(
    tmp_path: Path, tiny: Model, tiny_folder: Path, saved: Callable[..., Path]
) -> None:
    """Files that transformers does not load change neither the weights nor the digest."""
    folder = tmp_path / "others"
    shutil.copytree(tiny_folder, folder)
    for name in OTHERS:
        shutil.copy(saved(seed=1) / "model.safetensors", folder / f"{name}.safetensors")
    model = load_float32(folder)
    assert oracles_weights(model, GPT2(tiny_folder))
    assert model.weights_digest == tiny.weights_digest


def test_model_safetensors_comes_before_an_index(
    tmp_path: Path, tiny: Model, tiny_folder: Path, saved: Callable[..., Path]
) -> None:
    """Given a single file and shards with other weights, both load the single file."""
    folder = tmp_path / "both"
    reference(saved(seed=1), torch.float32).save_pretrained(folder, max_shard_size="60KB")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    model = load_float32(folder)
    theirs = reference(folder, torch.float32).transformer.h[1].mlp.c_fc.weight
    assert torch.equal(model.blocks[1].w_in.weight, theirs)
    assert torch.equal(model.blocks[1].w_in.weight, tiny.blocks[1].w_in.weight)
    assert model.weights_digest == tiny.weights_digest


def test_a_shard_that_the_index_does_not_name_does_not_count(
    tmp_path: Path, tiny_folder: Path, saved: Callable[..., Path]
) -> None:
    """The digest covers the shards of the index, and no other file."""
    folder = tmp_path / "shards"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    reference(tiny_folder, torch.float32).save_pretrained(folder, max_shard_size="60KB")
    before = load_float32(folder).weights_digest
    shutil.copy(saved(seed=1) / "model.safetensors", folder / "model-00000-of-00099.safetensors")
    model = load_float32(folder)
    assert oracles_weights(model, GPT2(tiny_folder))
    assert model.weights_digest == before


def test_a_folder_comes_before_a_hub_id(
    tmp_path: Path, tiny: Model, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name without a revision is the folder of this name here; its revision is None."""
    shutil.copytree(tiny_folder, tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    model = load_float32(Path("gpt2"))
    assert (model.id, model.revision, model.weights_digest) == ("gpt2", None, tiny.weights_digest)
