"""Norms and products along the last dimension."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.theory import dot, norm


def test_norm_and_dot_equal_numpys_in_float64() -> None:
    """Both reduce only the last dimension and return float64, also for float32 vectors."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 4, 50, generator=generator)
    length, product = norm(x), dot(x, y)
    assert length.dtype == product.dtype == torch.float64
    wide_x, wide_y = x.double().numpy(), y.double().numpy()
    np.testing.assert_allclose(length, np.linalg.norm(wide_x, axis=-1), rtol=1e-14)
    np.testing.assert_allclose(product, np.einsum("abi,abi->ab", wide_x, wide_y), atol=1e-13)


def test_norm_is_accumulated_in_float64() -> None:
    """The norm of a million float32 values 0.1 is exact to 1e-11, which a float32 sum is not."""
    tenth = torch.full((1_000_000,), 0.1)
    assert float(norm(tenth)) == pytest.approx(1000.0 * float(np.float32(0.1)), rel=1e-11)
