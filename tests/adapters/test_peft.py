"""The conversion to PEFT's form, compared through real PEFT on real transformers.

The expected logits are those of transformers with each changed weight written into it, and of the
walk under the same updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils.warning import PeftWarning
from torch import Tensor
from transformers import AutoModelForCausalLM

from service.adapters.peft import from_peft, to_peft
from service.engine import Fixed, Model, Run, Site
from service.engine.walk import forward
from service.theory.static_update import StaticUpdate
from tests.adapters.made import random_updates, read_folder, write_folder
from tests.analysis.subjects import Subject
from tests.engine.made import logits_of

IDS = [5, 17, 101, 44, 5, 200, 99, 12, 31, 8]
BOUND = 5e-6

# PEFT 0.21 reads a property that transformers 5 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@contextmanager
def transformers_model(folder: Path) -> Iterator[Any]:
    """A checkpoint's model in transformers."""
    with torch.inference_mode(False), torch.no_grad():
        yield AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> Tensor:
    """Logits of every token of a prompt."""
    found: Tensor = model(torch.tensor([IDS]), use_cache=False).logits[0]
    return found


def apart(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖/‖expected‖."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def patched_logits(model: Model, updates: Mapping[int, StaticUpdate]) -> Tensor:
    """Logits of the same prompt in the walk under updates."""
    rows = range(len(IDS))
    reads = {Site(model.n_layers - 1, "resid_post"): rows}
    (read,) = forward(model, [Run(IDS, rows, reads, patch=Fixed(updates))])
    return logits_of(model, read)


def written_into(theirs: Any, model: Model, updates: Mapping[int, StaticUpdate]) -> Tensor:
    """Logits of transformers after each changed weight was written into its parameters.

    A bias that the block's output has no parameter for is added by a hook.
    """
    parameters = dict(theirs.named_parameters())

    def add(name: str, delta: Tensor) -> None:
        parameters[name] += delta if model.family.fan_in_fan_out else delta.T

    handles = []
    for layer, update in updates.items():
        if update.w_in is not None:
            for weight in model.first_weights(layer):
                add(weight.name, update.w_in.dense()[:, weight.columns])
        if update.w_out is not None:
            add(model.second_weight(layer), update.w_out.dense())
        if update.bias is not None:
            block = theirs.get_submodule(model.path(layer, ""))
            shift = update.bias

            def shifted(_module: Any, _input: Any, out: Any, shift: Tensor = shift) -> Any:
                return (out[0] + shift, *out[1:]) if isinstance(out, tuple) else out + shift

            handles.append(block.register_forward_hook(shifted))
        if update.gain is not None and (name := model.post_norm_gain(layer)) is not None:
            parameters[name].copy_(update.gain - 1.0)
    found = logits(theirs)
    for handle in handles:
        handle.remove()
    return found


@pytest.fixture(params=["weights", "bias"])
def updates(request: pytest.FixtureRequest, variant: Subject) -> dict[int, StaticUpdate]:
    """Random updates of each variant, in each form that it has."""
    has_bias = variant.model.bias_parameter(0) is not None
    return random_updates(variant.model, bias=request.param == "bias" and has_bias)


def test_peft_gives_the_logits_of_changed_weights(
    variant: Subject,
    variant_name: str,
    updates: dict[int, StaticUpdate],
    folder_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """PEFT gives the logits of the changed weights, also merged, and those of the walk under the
    updates that were read from the file. Disabled it restores the base model's exactly, which are
    far from them."""
    model = variant.model
    folder = write_folder(model, updates, tmp_path)
    with transformers_model(folder_of(variant_name)) as theirs:
        expected = written_into(theirs, model, updates)
    with transformers_model(folder_of(variant_name)) as theirs:
        plain = logits(theirs)
        wrapped = PeftModel.from_pretrained(theirs, str(folder)).eval()
        found = logits(wrapped)
        with wrapped.disable_adapter():
            disabled = logits(wrapped)
        merged = logits(wrapped.merge_and_unload())
    walked = patched_logits(model, read_folder(model, folder))
    assert apart(walked, expected) <= BOUND
    assert apart(plain, expected) > 0.02
    assert apart(found, expected) <= BOUND
    assert apart(merged, expected) <= BOUND
    assert torch.equal(disabled, plain)


def test_updates_come_back_from_their_files(
    variant: Subject, updates: dict[int, StaticUpdate], tmp_path: Path
) -> None:
    """Updates that are read from their file equal the written ones, beside the padding of ranks and
    the rounding of a gain."""
    model = variant.model
    folder = write_folder(model, updates, tmp_path)
    found = read_folder(model, folder)
    assert found.keys() == updates.keys()
    for layer, update in updates.items():
        same = found[layer]
        for part in ("w_in", "w_out"):
            one, other = getattr(update, part), getattr(same, part)
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one.input, other.input[: len(one.input)])
            assert one is None or apart(other.dense(), one.dense()) < 1e-7
        for part in ("bias", "gain"):
            one, other = getattr(update, part), getattr(same, part)
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other, rtol=0, atol=2e-7)


def test_names_are_whole_paths_of_the_patched_layers(bundled: Model) -> None:
    """Only modules of patched layers are named, by their whole path, and the bias form has a bias
    for each of them."""
    updates = random_updates(bundled, bias=True)
    tensors, config = to_peft(bundled, updates)
    named = {
        f"transformer.h.{layer}.mlp.{part}" for layer in updates for part in ("c_fc", "c_proj")
    }
    assert set(config["target_modules"]) == named
    assert config["lora_bias"] is True
    assert config["fan_in_fan_out"] is True
    assert {name for name in tensors if name.endswith(".bias")} == {
        f"base_model.model.{module}.lora_B.bias" for module in named
    }


def test_bias_without_a_parameter_loads_and_does_not_merge(
    variant_of: Callable[[str], Subject], folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """PEFT adds a bias to a module without one, but refuses to merge it."""
    model = variant_of("llama").model
    updates = random_updates(model, bias=True)
    folder = write_folder(model, updates, tmp_path)
    with transformers_model(folder_of("llama")) as theirs:
        expected = written_into(theirs, model, updates)
    with transformers_model(folder_of("llama")) as theirs:
        with pytest.warns(PeftWarning, match="lora_bias=True"):
            wrapped = PeftModel.from_pretrained(theirs, str(folder)).eval()
        assert apart(logits(wrapped), expected) <= BOUND
        with pytest.raises(RuntimeError, match="no bias"):
            wrapped.merge_and_unload()


def test_bias_behind_a_norm_is_refused(variant_of: Callable[[str], Subject]) -> None:
    """Where a norm follows the MLP, PEFT could add a bias only before the norm."""
    model = variant_of("gemma3").model
    with pytest.raises(ValueError, match="norm"):
        to_peft(model, {0: StaticUpdate(bias=torch.ones(model.d_model))})


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("another model", "no parameter"),
        ("scaled", "scale 1"),
        ("a factor is missing", "one factor"),
        ("own input factors", "input factors"),
        ("a bias of a first weight", "have a bias"),
    ],
)
def test_other_adapters_are_refused(
    variant_of: Callable[[str], Subject], fault: str, said: str
) -> None:
    """An adapter that is no patch of this model is refused, and not read as another one."""
    model = variant_of("llama-biases").model
    tensors, config = to_peft(model, random_updates(model, bias=True))
    gate = "base_model.model.model.layers.1.mlp.gate_proj."
    if fault == "another model":
        tensors = {name.replace("layers.1", "layers.7"): part for name, part in tensors.items()}
    elif fault == "scaled":
        config["lora_alpha"] = 16
    elif fault == "a factor is missing":
        del tensors[f"{gate}lora_A.weight"]
    elif fault == "own input factors":
        tensors[f"{gate}lora_A.weight"] *= 2
    else:
        tensors[f"{gate}lora_B.bias"] += 1
    with pytest.raises(ValueError, match=said):
        from_peft(model, tensors, config)
