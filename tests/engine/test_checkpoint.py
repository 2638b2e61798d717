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
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from service.engine import Model, load
from service.engine.families import Block
from service.engine.walk import forward
from service.errors import CannotLoad
from tests.checkpoints import save_tiny
from tests.engine.made import edited, everything, logits_of, reference, relative, worst
from tests.oracle import GPT2

IDS = [5, 99, 200, 17, 5, 42]


def load_float32(folder: Path) -> Model:
    """A folder, resident in float32 on the CPU."""
    return load(str(folder), revision=None, device="cpu", dtype="float32")


def same(tensor: Tensor, array: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bool:
    """Whether a resident tensor holds these very numbers."""
    return bool(np.array_equal(tensor.double().numpy(), array))


def _beside(block: Block, part: str) -> Tensor:
    """Queries, keys and values side by side, as the file has them."""
    return torch.cat([getattr(block.queries, part), getattr(block.keys_values, part)], -1)


def oracles_weights(model: Model, oracle: GPT2) -> bool:
    """Whether every weight is the one that the oracle's own parser read from the file."""
    pairs = [
        (model.token_embedding, oracle.wte),
        (model.position_embedding, oracle.wpe),
        (model.final_norm.gain, oracle.ln_f_gain),
        (model.unembedding, oracle.unembedding),
    ]
    for block, theirs in zip(model.blocks, oracle.blocks, strict=True):
        pairs += [
            (block.ln_1.gain, theirs.ln_1_gain),
            (block.ln_1.bias, theirs.ln_1_bias),
            (_beside(block, "weight"), theirs.c_attn),
            (_beside(block, "bias"), theirs.c_attn_bias),
            (block.attn_out.weight, theirs.attn_c_proj),
            (block.ln_2.gain, theirs.ln_2_gain),
            (block.w_in.weight, theirs.c_fc),
            (block.w_in.bias, theirs.c_fc_bias),
            (block.w_out.weight, theirs.mlp_c_proj),
            (block.w_out.bias, theirs.mlp_c_proj_bias),
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
        values = np.linalg.svd(block.c_fc, compute_uv=False)
        frobenius, spectral = tiny.weight_norms[layer]
        assert frobenius == pytest.approx(float(np.linalg.norm(values)), rel=1e-12)
        assert spectral == pytest.approx(float(values[0]), rel=1e-12)
        assert tiny.weight_norms[layer] == (frobenius, spectral)


VARIANTS: list[dict[str, object]] = [
    {"tie_word_embeddings": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False},
    {"n_inner": 48},
    {"n_inner": 20},
    {"activation_function": "gelu"},
    {"activation_function": "relu"},
    {"activation_function": "gelu_pytorch_tanh"},
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
    assert not torch.equal(untied.unembedding, untied.token_embedding)
    assert tied.unembedding.data_ptr() == tied.token_embedding.data_ptr()


def another_architecture(folder: Path) -> None:
    """A tiny GPT-NeoX in the place of the GPT-2."""
    config = GPTNeoXConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)


def only_a_pickle(folder: Path) -> None:
    """The same weights as a pickle alone."""
    torch.save(reference(folder, torch.float32).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without(name: str) -> Callable[[Path], None]:
    """A checkpoint that lacks a tensor."""

    def spoil(folder: Path) -> None:
        edited(folder, folder.parent / "lacking", lambda tensors: tensors.__delitem__(name))
        shutil.copy(folder.parent / "lacking" / "model.safetensors", folder)

    return spoil


def writing(file: str, content: bytes) -> Callable[[Path], None]:
    """A checkpoint one of whose files holds this."""

    def spoil(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return spoil


def cut_short(folder: Path) -> None:
    """A weights file that ends too early."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def configured(**fields: object) -> Callable[[Path], None]:
    """A config.json with other fields."""

    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (another_architecture, "'gpt_neox'"),
        (configured(add_cross_attention=True), "cross attention"),
        (only_a_pickle, "pickles are not loaded"),
        (without("transformer.h.1.mlp.c_fc.weight"), "transformer.h.1.mlp.c_fc.weight"),
        (without("transformer.ln_f.bias"), "transformer.ln_f.bias"),
        (writing("config.json", b"{"), "config.json"),
        (writing("config.json", b""), "config.json"),
        (writing("config.json", b'{"model_type": "martian"}'), "config.json"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (writing("model.safetensors", b"garbage"), "cannot be read"),
        (writing("model.safetensors", b""), "cannot be read"),
        (cut_short, "cannot be read"),
        (configured(n_embd=64), "cannot be read"),
        (configured(n_head=5), "cannot be read"),
        (configured(activation_function="martian"), "cannot be read"),
        (writing("tokenizer.json", b"{"), "cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_served_is_refused(
    tmp_path: Path, tiny_folder: Path, spoil: Callable[[Path], None], says: str
) -> None:
    """With one sentence that names the checkpoint and the reason, and never a wrong model."""
    folder = tmp_path / "spoilt"
    shutil.copytree(tiny_folder, folder)
    with torch.inference_mode(False):
        spoil(folder)
    with pytest.raises(CannotLoad) as refused:
        load_float32(folder)
    assert says in refused.value.detail
    assert str(folder) in refused.value.detail
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize("name", ["/no/such/folder", "deltaw/not-in-the-cache", "not-there", "a b"])
def test_a_name_that_is_nowhere_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a folder nor in the hub's cache, offline: the sentence says what to set instead."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotLoad, match="set DELTAW_MODEL to a folder") as refused:
        load(name, revision=None, device="cpu", dtype="float32")
    assert name in refused.value.detail


@pytest.mark.parametrize("device", ["cuda:9", "nonsense", "cpu:x"])
def test_a_device_that_is_not_here_is_refused(tiny_folder: Path, device: str) -> None:
    """The sentence names the device and the setting."""
    with pytest.raises(CannotLoad, match="DELTAW_DEVICE"):
        load(str(tiny_folder), revision=None, device=device, dtype="float32")
