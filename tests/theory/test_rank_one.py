"""Rank-1 matrices kept as factors, compared with NumPy on dense matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.theory import RankOne

few = settings(derandomize=True, max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
widths = st.integers(1, 9)
magnitudes = st.floats(-12.0, 12.0).map(lambda exponent: 10.0**exponent)


def draw(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def matrix(seed: int, d_in: int = 6, d_out: int = 9, *batch: int) -> RankOne:
    """A random rank-1 matrix."""
    return RankOne(draw(seed, *batch, d_in), draw(seed + 1, *batch, d_out))


@few
@given(seeds, widths, widths, magnitudes)
def test_norm_equals_frobenius_spectral_and_nuclear_norm(
    seed: int, d_in: int, d_out: int, scale: float
) -> None:
    """Frobenius, spectral and nuclear norm of the dense matrix all equal the norm from the
    factors."""
    one = matrix(seed, d_in, d_out)
    one = RankOne(one.input * scale, one.output)
    dense = one.dense().numpy()
    for kind in ("fro", 2, "nuc"):
        found = np.linalg.norm(dense, kind)
        assert abs(float(one.norm) - found) <= 1e-12 * found
    values = np.linalg.svd(dense, compute_uv=False)
    assert (values[1:] <= 1e-12 * values[0]).all()


@few
@given(seeds, widths, widths)
def test_dense_is_the_outer_product_in_stored_orientation(seed: int, d_in: int, d_out: int) -> None:
    """`dense` is (d_in, d_out) with the entries a_i b_j."""
    one = matrix(seed, d_in, d_out)
    assert np.array_equal(one.dense(), np.outer(one.input, one.output))


@few
@given(seeds, st.integers(1, 5))
def test_apply_equals_the_product_with_the_dense_matrix(seed: int, rows: int) -> None:
    """`x·M` from the factors equals NumPy's x @ dense, for one matrix with many rows."""
    one, x = matrix(seed), draw(seed + 7, rows, 6)
    expected = x.numpy() @ one.dense().numpy()
    np.testing.assert_allclose(one.apply(x), expected, rtol=0, atol=1e-12 * abs(expected).max())


def test_batches_act_matrix_by_matrix() -> None:
    """With leading dimensions norm, apply, inner, cosine, dense and [] act on each matrix
    separately."""
    many, others, x = matrix(3, 6, 9, 4), matrix(5, 6, 9, 4), draw(9, 4, 6)
    applied, dense = many.apply(x), many.dense()
    assert applied.shape == (4, 9)
    assert dense.shape == (4, 6, 9)
    for i in range(4):
        one, other = many[i], others[i]
        assert torch.equal(one.dense(), dense[i])
        np.testing.assert_allclose(applied[i], x[i].numpy() @ one.dense().numpy(), atol=1e-12)
        assert float(many.norm[i]) == pytest.approx(np.linalg.norm(one.dense()), rel=1e-12)
        assert float(many.cosine(others)[i]) == pytest.approx(float(one.cosine(other)), rel=1e-12)


@few
@given(seeds)
def test_cosine_is_the_product_of_the_factors_cosines(seed: int) -> None:
    """cos(M₁, M₂) over all entries is cos(a₁, a₂)·cos(b₁, b₂), and ⟨M₁, M₂⟩ is the sum of
    products."""
    one, other = matrix(seed), matrix(seed + 11)
    dense, dense_other = one.dense().numpy(), other.dense().numpy()
    inner = float((dense * dense_other).sum())
    lengths = np.linalg.norm(dense) * np.linalg.norm(dense_other)
    assert abs(float(one.inner(other)) - inner) <= 1e-12 * lengths
    assert abs(float(one.cosine(other)) - inner / lengths) <= 1e-12

    def cos(x: Tensor, y: Tensor) -> float:
        return float(x @ y) / float(x.norm() * y.norm())

    parts = cos(one.input, other.input) * cos(one.output, other.output)
    assert abs(float(one.cosine(other)) - parts) <= 1e-12


def test_cosine_with_a_zero_matrix_is_nan() -> None:
    """The cosine with a zero matrix is NaN, neither 0 nor an error."""
    one = matrix(0)
    assert torch.isnan(one.cosine(RankOne(one.input, torch.zeros_like(one.output))))


def test_norm_of_float32_factors_is_computed_in_float64() -> None:
    """The norm of float32 factors equals the float64 norm of the rounded factors to 1e-14."""
    wide = matrix(1, 300, 1200)
    one = wide.to(torch.float32)
    assert one.input.dtype == one.output.dtype == torch.float32
    exact = np.linalg.norm(one.input.double()) * np.linalg.norm(one.output.double())
    assert float(one.norm) == pytest.approx(float(exact), rel=1e-14)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda m, x: m.dense() @ x, id="transposed"),
        pytest.param(lambda m, x: RankOne(m.output, m.input).apply(x), id="factors swapped"),
        pytest.param(lambda m, x: m.output * m.input.sum(), id="without x"),
        pytest.param(lambda m, x: m.apply(x) / m.norm, id="normalised"),
        pytest.param(lambda m, x: m.apply(x.roll(1)), id="shifted"),
    ],
)
def test_wrong_products_are_detected(wrong: Callable[[RankOne, Tensor], Tensor]) -> None:
    """Transposed, swapped or scaled factors differ clearly from x @ dense, also for a square
    matrix."""
    one, x = matrix(21, 6, 6), draw(22, 6)
    expected = x @ one.dense()
    assert float((one.apply(x) - expected).norm()) < 1e-12
    assert float((wrong(one, x) - expected).norm()) > 1e-3
