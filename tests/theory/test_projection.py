"""Products with the first weight in any layout, without a model."""

from __future__ import annotations

import pytest
import torch

from service.theory.projection import product
from tests.theory.layers import Dense


def drawn(*shape: int) -> torch.Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_leading_dimensions_reach_the_weight_as_rows(batch: tuple[int, ...]) -> None:
    """A weight that multiplies rows alone serves any number of leading dimensions, also empty
    ones."""
    x, w = drawn(*batch, 6), drawn(6, 4)
    found = product(x, Dense(w))
    assert found.shape == (*batch, 4)
    torch.testing.assert_close(found, torch.einsum("...i,io->...o", x, w))


@pytest.mark.parametrize(
    ("kept", "multiplied"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_product_is_in_the_weights_dtype_and_at_least_float32(
    kept: torch.dtype, multiplied: torch.dtype
) -> None:
    """A weight in half precision is multiplied in float32, bit by bit as `x @ W`."""
    x, w = drawn(3, 6), drawn(6, 4).to(kept)
    found = product(x, Dense(w))
    assert found.dtype == multiplied
    assert torch.equal(found, x.to(multiplied) @ w.to(multiplied))
