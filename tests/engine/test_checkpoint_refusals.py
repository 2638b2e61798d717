"""Refusals: folders, pins and devices that cannot be served, each with its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPTJConfig, GPTJForCausalLM

from service.engine import load
from service.errors import CannotLoad
from tests.checkpoints import save_tiny
from tests.engine.made import edited, reference, relative


def another_architecture(folder: Path) -> None:
    """A tiny GPT-J in the place of the GPT-2."""
    config = GPTJConfig(
        vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_inner=32, n_positions=32, rotary_dim=4
    )
    GPTJForCausalLM(config).save_pretrained(folder)


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


def with_adapter(folder: Path) -> None:
    """An adapter beside the weights, as PEFT saves one."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1}')
    tensors = {"base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight": torch.ones(1, 32)}
    save_file(tensors, folder / "adapter_model.safetensors")


def only_an_adapter(folder: Path) -> None:
    """An adapter without the model that it belongs to."""
    with_adapter(folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()


def tokenizer_configured(**fields: object) -> Callable[[Path], None]:
    """A tokenizer_config.json with other fields."""

    def spoil(folder: Path) -> None:
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    return spoil


def with_a_trained_activation(folder: Path) -> None:
    """PReLU, whose slope is a weight of the checkpoint."""
    save_tiny(folder, activation_function="prelu")


def indexed(weight_map: str) -> Callable[[Path], None]:
    """An index with this map in the place of a single file."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(weight_map)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (another_architecture, "'gptj'"),
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
        (with_adapter, "merge it into the weights"),
        (only_an_adapter, "merge it into the weights"),
        (configured(is_causal=False), "`is_causal`"),
        (configured(quantization_config={"quant_method": "gptq", "bits": 4}), "quantized"),
        (configured(transformers_weights="other.safetensors"), "`transformers_weights`"),
        (configured(auto_map={"AutoModelForCausalLM": "modeling_x.X"}), "`auto_map`"),
        (tokenizer_configured(auto_map={"AutoTokenizer": ["tokens.X", None]}), "`auto_map`"),
        (with_a_trained_activation, "activation function has weights"),
        (writing("shard-00001-model-00001-of-00001.safetensors", b""), "distributed checkpoint"),
        (indexed("{"), "index.json"),
        (indexed('{"weight_map": {"lm_head.weight": "absent.safetensors"}}'), "cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_served_is_refused(
    tmp_path: Path, tiny_folder: Path, spoil: Callable[[Path], None], says: str
) -> None:
    """One sentence names the checkpoint and the reason; no other model is served."""
    folder = tmp_path / "spoilt"
    shutil.copytree(tiny_folder, folder)
    with torch.inference_mode(False):
        spoil(folder)
    with pytest.raises(CannotLoad) as refused:
        load(str(folder), revision=None, device="cpu", dtype="float32")
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


def test_attention_that_is_not_causal_differs_from_ours(tmp_path: Path, tiny_folder: Path) -> None:
    """transformers heeds `is_causal`: its logits change by more than any rounding."""
    folder = tmp_path / "spoilt"
    shutil.copytree(tiny_folder, folder)
    configured(is_causal=False)(folder)
    ids = torch.tensor([[5, 99, 200, 17]])
    with torch.inference_mode(False):
        both, causal = map(AutoModelForCausalLM.from_pretrained, (folder, tiny_folder))
    assert relative(both.eval()(ids).logits, causal.eval()(ids).logits) > 0.01


@pytest.mark.parametrize("name", ["gpt2", "bundled"])
def test_a_revision_that_cannot_be_kept_is_refused(
    name: str, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder and the bundled model have no revisions: the sentence says what to unset."""
    shutil.copytree(tiny_folder, tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotLoad, match="unset DELTAW_REVISION") as refused:
        load(name, revision="607a30d783df", device="cpu", dtype="float32")
    assert repr(name) in refused.value.detail
    assert "'607a30d783df'" in refused.value.detail
