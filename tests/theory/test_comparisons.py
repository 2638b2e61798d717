"""Comparisons of vectors and distributions, checked with NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from service.theory import compare, discrepancy, kl_divergence

few = settings(derandomize=True, max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
Kl = Callable[[NDArray[np.float64], NDArray[np.float64]], np.float64]


def draw(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def probabilities(logits: Tensor) -> NDArray[np.float64]:
    """Softmax of the logits, by its formula."""
    wide = logits.double().numpy()
    weights = np.exp(wide - wide.max(-1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(-1, keepdims=True)
    return shares


@few
@given(seeds, st.sampled_from([(), (4,), (2, 3)]))
def test_compare_returns_norms_and_cosine(seed: int, batch: tuple[int, ...]) -> None:
    """‖v_C‖, ‖v‖, ‖v_C − v‖ and the cosine equal NumPy's, each under its own name."""
    baseline, context = draw(seed, *batch, 7), 2.0 * draw(seed + 1, *batch, 7)
    found = compare(baseline, context)
    a, b = baseline.numpy(), context.numpy()
    lengths = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(found.norm_baseline, lengths[0], rtol=1e-12)
    np.testing.assert_allclose(found.norm_with_context, lengths[1], rtol=1e-12)
    np.testing.assert_allclose(found.norm_difference, np.linalg.norm(b - a, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(found.cosine, (a * b).sum(-1) / lengths[0] / lengths[1], atol=1e-12)


def test_difference_is_formed_in_float64() -> None:
    """Two float32 vectors that differ in the last place have exactly that difference."""
    v = torch.ones(3, dtype=torch.float32)
    found = compare(v, torch.nextafter(v, torch.full_like(v, 2.0)))
    assert float(found.norm_difference) == pytest.approx(3**0.5 * 2.0**-23, rel=1e-12)
    assert 0.0 <= float(found.cosine) <= 1.0


@pytest.mark.parametrize("scale", [1e-3, 0.1, 3.7, 1e5])
def test_cosine_stays_between_minus_one_and_one(scale: float) -> None:
    """The cosine of parallel vectors is at most 1 and that of opposite vectors at least −1."""
    v = draw(3, 200, 11)
    assert float(compare(v, v * scale).cosine.max()) <= 1.0
    assert float(compare(v, -v * scale).cosine.min()) >= -1.0


def test_cosine_with_a_zero_vector_is_nan() -> None:
    """With a zero vector the cosine is NaN and the norms are still correct."""
    found = compare(torch.zeros(3), torch.tensor([3.0, 0.0, 4.0]))
    assert torch.isnan(found.cosine)
    assert float(found.norm_difference) == 5.0


@few
@given(seeds, st.sampled_from([(), (4,)]))
def test_discrepancy_is_relative_to_the_expected(seed: int, batch: tuple[int, ...]) -> None:
    """Error over ‖expected‖ (not ‖actual‖) and the largest entry equal NumPy's."""
    expected, actual = draw(seed, *batch, 7), 5.0 * draw(seed + 1, *batch, 7)
    found = discrepancy(expected, actual)
    gap = actual.numpy() - expected.numpy()
    magnitude = np.linalg.norm(expected.numpy(), axis=-1)
    np.testing.assert_allclose(found.magnitude, magnitude, rtol=1e-12)
    np.testing.assert_allclose(found.error, np.linalg.norm(gap, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(
        found.relative_error, np.linalg.norm(gap, axis=-1) / magnitude, rtol=1e-12
    )
    np.testing.assert_allclose(found.max_abs_error, abs(gap).max(-1), rtol=1e-12)
    swapped = discrepancy(actual, expected)
    assert not torch.allclose(swapped.relative_error, found.relative_error, rtol=1e-3)


def test_relative_error_to_zero_is_nan_or_infinite() -> None:
    """Zero against zero gives NaN, any other vector against zero infinity, and neither gives 0."""
    zero, one = torch.zeros(2), torch.ones(2)
    assert torch.isnan(discrepancy(zero, zero).relative_error)
    assert torch.isinf(discrepancy(zero, one).relative_error)


@few
@given(seeds, st.floats(0.01, 30.0))
def test_kl_equals_its_formula_and_is_not_negative(seed: int, spread: float) -> None:
    """KL(p‖q) = Σ p (log p − log q) in nats, in this order, and it is ≥ 0."""
    one, other = spread * draw(seed, 5, 13), spread * draw(seed + 1, 5, 13)
    p, q = probabilities(one), probabilities(other)
    expected = (p * (np.log(p) - np.log(q))).sum(-1)
    found = kl_divergence(one, other)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    assert bool((found >= 0).all())


@few
@given(seeds, st.floats(-1e3, 1e3))
def test_kl_of_a_distribution_with_itself_is_zero(seed: int, shift: float) -> None:
    """Logits that differ by a constant have a KL divergence of 0, and not a negative one."""
    logits = draw(seed, 13)
    found = float(kl_divergence(logits, logits + shift))
    assert 0.0 <= found <= 1e-11


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda p, q: (q * (np.log(q) - np.log(p))).sum(), id="other direction"),
        pytest.param(lambda p, q: (p * (np.log2(p) - np.log2(q))).sum(), id="bits"),
        pytest.param(lambda p, q: -(p * np.log(q)).sum(), id="cross entropy"),
        pytest.param(lambda p, q: (p * (np.log(p) - np.log(q))).mean(), id="mean"),
    ],
)
def test_wrong_kl_formulas_are_detected(wrong: Kl) -> None:
    """The other direction, bits, cross entropy and a mean all differ clearly from the service's
    figure."""
    one, other = draw(5, 13), draw(6, 13)
    found = float(wrong(probabilities(one), probabilities(other)))
    assert abs(found - float(kl_divergence(one, other))) > 1e-3


def test_kl_of_float32_logits_is_computed_in_float64() -> None:
    """The KL divergence of nearly equal float32 rows equals that of the same numbers in float64."""
    logits = draw(9, 50).float()
    other = logits.clone()
    other[0] += 1e-3
    p, q = probabilities(logits), probabilities(other)
    expected = (p * (np.log(p) - np.log(q))).sum()
    assert float(kl_divergence(logits, other)) == pytest.approx(expected, rel=1e-6)
