"""The oracle's decoder: every hook point of every family is transformers' own, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.families import VARIANTS, WINDOW, save
from tests.oracle.decoder import Decoder

IDS = [5, 99, 200, 17, 5, 42, 9, 9, 30, 99, 250, 33, 71, 180, 2]
"""A run longer than twice the window."""
POINTS = {
    "gpt2": ("transformer.h", "ln_1", "attn", "mlp.c_fc", "mlp.c_proj"),
    "gpt_neox": (
        "gpt_neox.layers",
        "input_layernorm",
        "attention",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ),
    "opt": (
        "model.decoder.layers",
        "self_attn_layer_norm",
        "self_attn",
        "fc1",
        "fc2",
    ),
    "gemma3_text": (
        "model.layers",
        "input_layernorm",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.down_proj",
    ),
}
"""The blocks' path, and the modules that return ln_1_out, attn_out and mlp_pre, and that read
mlp_act. The third one reads mlp_in."""
LLAMA = (
    "model.layers",
    "input_layernorm",
    "self_attn",
    "mlp.gate_proj",
    "mlp.down_proj",
)


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> Path:
    """The checkpoint folder of one variant."""
    return folder_of(request.param)


def wide(model: Any) -> Any:
    """The same model in float64, with RMS norms that do not go through float32."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _rms_norm(module)
    return model.double()


def _rms_norm(module: Any) -> Any:
    """The formula of a module's RMS norm, in the dtype of its input."""
    offset = 1.0 if "Gemma" in type(module).__name__ else 0.0
    epsilon = getattr(module, "eps", None) or module.variance_epsilon

    def forward(x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
        scaled: Tensor = x * scale * (module.weight + offset)
        return scaled

    return forward


@contextmanager
def captured(model: Any) -> Iterator[dict[tuple[int, str], Tensor]]:
    """What the modules of each layer read and write while the context is open."""
    where, ln_1, attn, first, second = POINTS.get(model.config.model_type, LLAMA)
    seen: dict[tuple[int, str], Tensor] = {}
    handles = []
    for layer, block in enumerate(model.get_submodule(where)):
        modules = {"ln_1_out": ln_1, "attn_out": attn, "mlp_pre": first}
        if first.endswith("gate_proj"):
            modules["mlp_pre_linear"] = "mlp.up_proj"
        modules["mlp_second"] = second
        modules["mlp_out"] = "post_feedforward_layernorm" if "gemma" in str(type(block)) else second
        for point, path in modules.items():
            handles.append(
                block.get_submodule(path).register_forward_hook(_kept(seen, layer, point, False))
            )
        handles += [
            block.register_forward_hook(_kept(seen, layer, "resid_post", False)),
            block.register_forward_hook(_kept(seen, layer, "resid_pre", True)),
            block.get_submodule(first).register_forward_hook(_kept(seen, layer, "mlp_in", True)),
            block.get_submodule(second).register_forward_hook(_kept(seen, layer, "mlp_act", True)),
        ]
    yield seen
    for handle in handles:
        handle.remove()


def _kept(seen: dict[tuple[int, str], Tensor], layer: int, point: str, read: bool) -> Any:
    """A hook that keeps a module's input or output, as rows."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        value = inputs[0] if read else output
        value = value[0] if isinstance(value, tuple) else value
        seen[layer, point] = value.reshape(-1, value.shape[-1])

    return hook


def relative(ours: Any, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, by rows, the worst."""
    other = theirs.double().numpy()
    distance = np.linalg.norm(ours - other, axis=-1)
    return float((distance / np.linalg.norm(other, axis=-1)).max())


def test_every_hook_point_is_transformers_in_float64(folder: Path) -> None:
    """Each hook point of each layer and the logits agree with transformers to 1e-12."""
    model = wide(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    oracle = Decoder(folder)
    with captured(model) as theirs:
        logits = model(torch.tensor([IDS])).logits[0]
    ours = oracle.run(IDS)
    worst = {point: relative(ours[point], values) for point, values in theirs.items()}
    worst[-1, "logits"] = relative(ours.logits, logits)
    assert max(worst.values()) < 1e-12, worst
    assert {name for _, name in theirs} == {*oracle.hook_points, "mlp_second"} - {"resid_mid"}
    for layer in range(oracle.n_layers):
        middle = ours[layer, "resid_pre"] + ours[layer, "attn_out"]
        assert np.array_equal(middle, ours[layer, "resid_mid"])


def test_logits_are_transformers_in_float32(folder: Path) -> None:
    """The logits of transformers as it is, in float32, agree to 2e-6."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert relative(Decoder(folder).run(IDS).logits, model(torch.tensor([IDS])).logits[0]) < 2e-6


WINDOWLESS = [name for name, variant in VARIANTS.items() if not any(variant.windows)]


@pytest.mark.parametrize("name", WINDOWLESS)
def test_positions_may_have_gaps(name: str, folder_of: Callable[[str], Path]) -> None:
    """A run whose positions have gaps is transformers' with those position_ids, to 1e-12."""
    places = [0, *range(20, 20 + len(IDS) - 1)]
    folder = folder_of(name)
    model = wide(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    logits = model(
        torch.tensor([IDS]),
        attention_mask=torch.ones(1, len(IDS), dtype=torch.long),
        position_ids=torch.tensor([places]),
    ).logits[0]
    assert relative(Decoder(folder).run(IDS, places).logits, logits) < 1e-12


def test_a_window_counts_positions(folder_of: Callable[[str], Path]) -> None:
    """With a window in each layer, a token beyond the window in positions is not seen."""
    oracle = Decoder(folder_of("mistral"))
    alone = oracle.run(IDS[-1:], [40]).logits[-1]
    beyond = oracle.run(IDS[-2:], [40 - WINDOW, 40]).logits[-1]
    within = oracle.run(IDS[-2:], [41 - WINDOW, 40]).logits[-1]
    assert np.allclose(beyond, alone, rtol=1e-12, atol=0)
    assert np.linalg.norm(within - alone) > 0.1 * np.linalg.norm(alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    """A file in half precision gives the logits of transformers that widens it, to 1e-12."""
    with torch.inference_mode(False):
        save("llama-biases", tmp_path, dtype)
    model = wide(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    logits = model(torch.tensor([IDS])).logits[0]
    assert relative(Decoder(tmp_path).run(IDS).logits, logits) < 1e-12


@pytest.mark.parametrize("name", VARIANTS)
def test_each_layer_of_a_variant_reads_its_context(
    name: str, folder_of: Callable[[str], Path]
) -> None:
    """The context moves the stream after each layer by more than 5 %, and the table tells true."""
    oracle = Decoder(folder_of(name))
    variant = VARIANTS[name]
    full, alone = oracle.run(IDS), oracle.run(IDS[-1:], [len(IDS) - 1])
    for layer in range(oracle.n_layers):
        with_context, without = (run[layer, "resid_mid"][-1] for run in (full, alone))
        assert np.linalg.norm(with_context - without) > 0.05 * np.linalg.norm(without)
    assert tuple(block.window for block in oracle.blocks) == variant.windows
    assert (oracle.gated, oracle.parallel) == (variant.gated, variant.parallel)
    assert (oracle.rotary is None) == (variant.positions == "absolute")
    assert all((block.post_mlp is not None) == variant.post_norms for block in oracle.blocks)
