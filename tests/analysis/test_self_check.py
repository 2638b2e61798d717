"""The self-check at start: it holds for a sound model and for no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import torch
from torch import Tensor

from schemas.common import UNSET
from service.analysis.self_check import self_check
from service.engine import Model, drive, load
from service.engine.block import Block
from service.engine.layers import Affine
from tests.analysis.subjects import Subject
from tests.engine.made import with_nan


def test_self_check_of_a_sound_model_holds(subject: Subject) -> None:
    """The self-check covers every layer; the context matters in each, and the patched error is
    rounding."""
    found = drive(subject.model, self_check(subject.model))
    assert (found.verdict, found.layers) == ("holds", subject.model.n_layers)
    assert found.reason is UNSET
    assert found.worst_relative_error is not None
    assert found.least_unpatched_relative_error is not None
    assert found.worst_relative_error <= 2e-5
    assert found.least_unpatched_relative_error >= 1e4 * found.worst_relative_error
    assert datetime.fromisoformat(found.when).utcoffset() is not None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("transformer.h.1.mlp.c_fc.weight", "layer 1"),
        ("transformer.h.2.mlp.c_proj.weight", "layer 2"),
        ("transformer.h.0.attn.c_attn.weight", "layer 0"),
        ("transformer.wpe.weight", "layer 0"),
    ],
)
def test_self_check_of_a_model_with_nan_fails(
    tmp_path: Path, tiny_folder: Path, name: str, says: str
) -> None:
    """The verdict is `fails`, the reason names the layer, and the figures are null."""
    folder = with_nan(tiny_folder, tmp_path / "nan", name)
    model = load(str(folder), revision=None, device="cpu", dtype="float32")
    found = drive(model, self_check(model))
    assert found.verdict == "fails"
    assert found.worst_relative_error is None
    assert found.least_unpatched_relative_error is None
    assert found.reason
    assert says in found.reason


def altered(model: Model, change: Callable[[Block], Block]) -> Model:
    """A copy of the model with changed blocks."""
    return replace(model, blocks=tuple(change(block) for block in model.blocks))


def unsteady(block: Block) -> Block:
    """A block with a random activation function, for which no patch is exact."""
    generator = torch.Generator().manual_seed(0)

    def act(x: Tensor) -> Tensor:
        return block.activation(x) * (1.0 + 1e-3 * torch.randn(x.shape, generator=generator))

    return replace(block, activation=act)


def deaf(block: Block) -> Block:
    """A block whose attention adds nothing, so that the context cannot matter."""
    silent = Affine(torch.zeros_like(block.attn_out.weight))
    return replace(block, attn_out=silent)


@pytest.mark.parametrize(("change", "verdict"), [(unsteady, "fails"), (deaf, "vacuous")])
def test_self_check_of_an_unsound_model_fails_or_is_vacuous(
    tiny: Model, change: Callable[[Block], Block], verdict: str
) -> None:
    """A random activation function fails. Blocks that read no context are vacuous."""
    model = altered(tiny, change)
    found = drive(model, self_check(model))
    assert found.verdict == verdict
    assert drive(tiny, self_check(tiny)).verdict == "holds"
