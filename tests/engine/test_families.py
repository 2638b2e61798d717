"""The table of families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.engine import Model
from service.engine.families import FAMILIES, Affine, Block, Norm
from tests.engine.made import POINTS, reference


@pytest.fixture(scope="module")
def block() -> Block:
    """A block with random float32 weights."""
    generator = torch.Generator().manual_seed(0)

    def affine(d_in: int, d_out: int) -> Affine:
        weight = torch.randn(d_in, d_out, generator=generator)
        return Affine(weight, torch.randn(d_out, generator=generator))

    def norm() -> Norm:
        return Norm(torch.randn(4, generator=generator), torch.randn(4, generator=generator), 1e-5)

    return Block(
        norm(),
        affine(4, 12),
        affine(4, 4),
        norm(),
        affine(4, 16),
        affine(16, 4),
        torch.tanh,
        2,
        0.5,
    )


def test_an_affine_map_is_stored_in_by_out(block: Block) -> None:
    """y = x·W + b with W (d_in, d_out), entry by entry; columns are a slice of it."""
    x = torch.arange(8.0).reshape(2, 4)
    affine = block.w_in
    by_hand = torch.stack(
        [sum(x[:, i] * affine.weight[i, o] for i in range(4)) + affine.bias[o] for o in range(16)],
        dim=1,
    )
    torch.testing.assert_close(affine(x), by_hand)
    torch.testing.assert_close(affine.columns(4, None)(x), by_hand[:, 4:])
    torch.testing.assert_close(affine.columns(0, 4)(x), by_hand[:, :4])


def test_a_cast_is_a_copy_and_no_cast_is_the_block_itself(block: Block) -> None:
    """float64 holds the same numbers in new tensors; the resident dtype gives the resident ones."""
    assert block.to(torch.float32) is block
    wide = block.to(torch.float64)
    assert wide.w_in.weight.dtype == wide.ln_2.gain.dtype == wide.qkv.bias.dtype == torch.float64
    assert torch.equal(wide.w_out.weight, block.w_out.weight.double())
    assert (wide.n_heads, wide.scaling, wide.ln_1.eps) == (2, 0.5, 1e-5)


def test_module_paths_name_modules_of_the_model(tiny_folder: Path, tiny: Model) -> None:
    """Every hook point of every layer is the input or output of a module that exists."""
    family = FAMILIES["gpt2"]
    model = reference(tiny_folder, torch.float32)
    assert tuple(family.module_paths) == POINTS
    for path, side in family.module_paths.values():
        assert side in ("input", "output")
        assert all(model.get_submodule(path.format(layer=i)) for i in range(tiny.n_layers))


def test_weight_names_are_the_checkpoints(tiny_folder: Path, tiny: Model) -> None:
    """`weight_in` and `weight_out` name the very tensors that the blocks hold."""
    stored = reference(tiny_folder, torch.float32).state_dict()
    for layer, block in enumerate(tiny.blocks):
        assert torch.equal(stored[tiny.family.weight_in.format(layer=layer)], block.w_in.weight)
        assert torch.equal(stored[tiny.family.weight_out.format(layer=layer)], block.w_out.weight)
    assert tiny.family.fan_in_fan_out == (tiny.blocks[0].w_in.weight.shape[0] == tiny.d_model)
