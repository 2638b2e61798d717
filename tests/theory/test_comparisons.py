"""Vectors and distributions held against each other, against NumPy."""

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
    """Normal numbers of a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def probabilities(logits: Tensor) -> NDArray[np.float64]:
    """Softmax by its formula."""
    wide = logits.double().numpy()
    weights = np.exp(wide - wide.max(-1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(-1, keepdims=True)
    return shares


@few
@given(seeds, st.sampled_from([(), (4,), (2, 3)]))
def test_compare_gives_norms_and_cosine(seed: int, batch: tuple[int, ...]) -> None:
    """‖v_C‖, ‖v‖, ‖v_C − v‖ and the cosine are NumPy's, each on its own side."""
    baseline, context = draw(seed, *batch, 7), 2.0 * draw(seed + 1, *batch, 7)
    found = compare(baseline, context)
    a, b = baseline.numpy(), context.numpy()
    lengths = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(found.norm_baseline, lengths[0], rtol=1e-12)
    np.testing.assert_allclose(found.norm_with_context, lengths[1], rtol=1e-12)
    np.testing.assert_allclose(found.norm_difference, np.linalg.norm(b - a, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(found.cosine, (a * b).sum(-1) / lengths[0] / lengths[1], atol=1e-12)


def test_the_difference_is_formed_in_float64() -> None:
    """Two float32 vectors one unit in the last place apart differ by just that."""
    v = torch.ones(3, dtype=torch.float32)
    found = compare(v, torch.nextafter(v, torch.full_like(v, 2.0)))
    assert float(found.norm_difference) == pytest.approx(3**0.5 * 2.0**-23, rel=1e-12)
    assert 0.0 <= float(found.cosine) <= 1.0


@pytest.mark.parametrize("scale", [1e-3, 0.1, 3.7, 1e5])
def test_a_cosine_never_leaves_its_range(scale: float) -> None:
    """Parallel vectors have a cosine of at most 1 and opposite ones of at least −1."""
    v = draw(3, 200, 11)
    assert float(compare(v, v * scale).cosine.max()) <= 1.0
    assert float(compare(v, -v * scale).cosine.min()) >= -1.0


def test_a_cosine_with_nothing_does_not_exist() -> None:
    """With a zero vector it is NaN, and the norms still stand."""
    found = compare(torch.zeros(3), torch.tensor([3.0, 0.0, 4.0]))
    assert torch.isnan(found.cosine)
    assert float(found.norm_difference) == 5.0


@few
@given(seeds, st.sampled_from([(), (4,)]))
def test_discrepancy_is_relative_to_the_expected(seed: int, batch: tuple[int, ...]) -> None:
    """Error over ‖expected‖ (not ‖actual‖), and the largest entry, are NumPy's."""
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


def test_an_expected_zero_has_no_relative_error() -> None:
    """Zero against zero is NaN, anything else against zero infinite: never silently 0."""
    zero, one = torch.zeros(2), torch.ones(2)
    assert torch.isnan(discrepancy(zero, zero).relative_error)
    assert torch.isinf(discrepancy(zero, one).relative_error)


@few
@given(seeds, st.floats(0.01, 30.0))
def test_kl_is_the_formula_and_never_negative(seed: int, spread: float) -> None:
    """KL(p‖q) = Σ p (log p − log q) in nats, in this order, ≥ 0."""
    one, other = spread * draw(seed, 5, 13), spread * draw(seed + 1, 5, 13)
    p, q = probabilities(one), probabilities(other)
    expected = (p * (np.log(p) - np.log(q))).sum(-1)
    found = kl_divergence(one, other)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    assert bool((found >= 0).all())


@few
@given(seeds, st.floats(-1e3, 1e3))
def test_kl_of_a_distribution_with_itself_is_zero(seed: int, shift: float) -> None:
    """Logits that differ by a constant are one distribution: 0, and not below."""
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
def test_a_planted_error_in_kl_is_seen(wrong: Kl) -> None:
    """The other direction, bits, cross entropy and a mean are far from the service's figure."""
    one, other = draw(5, 13), draw(6, 13)
    found = float(wrong(probabilities(one), probabilities(other)))
    assert abs(found - float(kl_divergence(one, other))) > 1e-3


def test_float32_logits_lose_nothing_more() -> None:
    """KL of float32 logits is that of the same numbers in float64: nearly equal rows keep it."""
    logits = draw(9, 50).float()
    other = logits.clone()
    other[0] += 1e-3
    p, q = probabilities(logits), probabilities(other)
    expected = (p * (np.log(p) - np.log(q))).sum()
    assert float(kl_divergence(logits, other)) == pytest.approx(expected, rel=1e-6)
