"""The table of families, and the affine maps of a block."""

from __future__ import annotations

import pytest
import torch

from service.engine.block import Block
from service.engine.layers import PACKED, Affine, Norm, affine


@pytest.fixture(scope="module")
def block() -> Block:
    """A block with random float32 weights."""
    generator = torch.Generator().manual_seed(0)

    def random(d_in: int, d_out: int) -> Affine:
        weight = torch.randn(d_in, d_out, generator=generator)
        return Affine(weight, torch.randn(d_out, generator=generator))

    def norm() -> Norm:
        return Norm(torch.randn(4, generator=generator), torch.randn(4, generator=generator), 1e-5)

    return Block(
        norm(),
        random(4, 4),
        random(4, 8),
        random(4, 4),
        norm(),
        random(4, 16),
        random(16, 4),
        torch.tanh,
        2,
        0.5,
    )


def test_affine_map_is_stored_d_in_by_d_out(block: Block) -> None:
    """y = x·W + b with W stored (d_in, d_out), checked entry by entry."""
    x = torch.arange(8.0).reshape(2, 4)
    w_in = block.w_in
    assert w_in.bias is not None
    by_hand = torch.stack(
        [sum(x[:, i] * w_in.weight[i, o] for i in range(4)) + w_in.bias[o] for o in range(16)],
        dim=1,
    )
    torch.testing.assert_close(w_in(x), by_hand)


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 17, 65, 257])
def test_packed_layout_keeps_the_matrix_and_its_products(rows: int) -> None:
    """oneDNN's packed layout returns W bit by bit, and its products equal float64's to 1e-6."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(96, 200, generator=generator)[:, 8:]
    bias, x = (torch.randn(*shape, generator=generator) for shape in ((192,), (rows, 96)))
    blocks = affine(weight, bias)
    assert blocks.matrix.is_mkldnn == PACKED
    assert torch.equal(blocks.weight, weight)
    assert torch.equal(blocks.to(torch.float64).weight, weight.double())
    exact = torch.addmm(bias.double(), x.double(), weight.double())
    assert blocks(x).shape == exact.shape
    assert (blocks(x) - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.skipif(not PACKED, reason="torch has no packed layout for this processor")
def test_row_counts_are_padded_to_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row counts are padded to under 100 steps per 1,024, because oneDNN compiles a kernel per row
    count."""
    seen = []
    blocks = affine(torch.eye(8), torch.zeros(8))
    product = torch.ops.mkldnn._linear_pointwise

    def counted(x: torch.Tensor, *others: object) -> torch.Tensor:
        seen.append(len(x))
        result: torch.Tensor = product(x, *others)
        return result

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    for rows in range(1, 1025):
        assert blocks(torch.ones(rows, 8)).shape == (rows, 8)
        assert rows <= seen[-1] <= max(rows + 3, 10 / 9 * rows)
    assert len(set(seen)) < 100


def test_half_precision_is_not_packed() -> None:
    """In bfloat16 the checkpoint's own tensor is used, without a packed copy."""
    weight = torch.ones(8, 4, dtype=torch.bfloat16)
    assert affine(weight, torch.zeros(4, dtype=torch.bfloat16)).matrix is weight


def test_cast_copies_and_no_cast_returns_the_block(block: Block) -> None:
    """A cast to float64 copies the numbers; a cast to the resident dtype returns the same block."""
    assert block.to(torch.float32) is block
    wide = block.to(torch.float64)
    bias = wide.queries.bias
    assert bias is not None
    assert wide.w_in.weight.dtype == wide.pre_mlp.gain.dtype == bias.dtype == torch.float64
    assert torch.equal(wide.w_out.weight, block.w_out.weight.double())
    assert (wide.n_heads, wide.scaling, wide.pre_attn.eps) == (2, 0.5, 1e-5)
