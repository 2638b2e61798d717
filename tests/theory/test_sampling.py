"""Sampling: Gumbel-max draws from the right distribution, with noise that several runs share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.theory import choose, gumbel_noise, nucleus

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
DRAWS = 1500
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
UPPER_TAIL = 25.7
"""The quantile 0.9999 of χ² with 5 degrees of freedom."""


def splitmix(state: int, count: int) -> NDArray[np.uint64]:
    """The first outputs of SplitMix64, in NumPy's unsigned arithmetic."""
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def chi_square(temperature: float, top_p: float, allowed: list[int], expected_at: float) -> float:
    """χ² of draws against softmax(logits / `expected_at`) over the allowed tokens."""
    drawn = torch.tensor(
        [
            int(choose(LOGITS, temperature, top_p, gumbel_noise(7, step, len(LOGITS), "cpu")))
            for step in range(DRAWS)
        ]
    )
    p = torch.zeros(len(LOGITS), dtype=torch.float64)
    p[allowed] = (LOGITS[allowed].double() / expected_at).softmax(-1)
    counts = torch.bincount(drawn, minlength=len(LOGITS)).double()
    assert counts[p == 0].sum() == 0
    kept = p > 0
    return float(((counts - DRAWS * p)[kept] ** 2 / (DRAWS * p[kept])).sum())


def test_noise_is_that_of_splitmix64() -> None:
    """The random bits are SplitMix64's, seeded by the seed and the step, mixed twice."""
    for seed, step in ((0, 0), (5, 3), (2**63 - 1, 1023), (2**64 - 1, 1)):
        first = int(splitmix(seed, 1)[0])
        # One output for a state is the mixing function of the state plus GOLDEN.
        key = int(splitmix((first + step * GOLDEN - GOLDEN) & MASK, 1)[0])
        uniform = ((splitmix(key, 500) >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52
        np.testing.assert_allclose(
            gumbel_noise(seed, step, 500, "cpu").numpy(), -np.log(-np.log(uniform)), rtol=1e-13
        )


def test_noise_differs_by_seed_and_step_and_is_standard_gumbel() -> None:
    """The mean is Euler's constant and the variance π²/6; other seeds and steps correlate with
    nothing."""
    one = gumbel_noise(1, 0, 50_000, "cpu")
    assert one.isfinite().all()
    assert float(one.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(one.var()) == pytest.approx(np.pi**2 / 6, abs=0.05)
    for other in (gumbel_noise(1, 1, 50_000, "cpu"), gumbel_noise(1 + 2**32, 0, 50_000, "cpu")):
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.02
    assert torch.equal(one, gumbel_noise(1, 0, 50_000, "cpu"))


@pytest.mark.parametrize(("temperature", "top_p", "allowed"), [
    (1.0, 1.0, [0, 1, 2, 3, 4, 5]),
    (0.5, 1.0, [0, 1, 2, 3, 4, 5]),
    (1.0, 0.8, [0, 1, 2]),
])  # fmt: skip
def test_draws_have_the_distribution(temperature: float, top_p: float, allowed: list[int]) -> None:
    """Draws follow softmax(logits / T) over the nucleus, and not that of another temperature."""
    assert chi_square(temperature, top_p, allowed, temperature) < UPPER_TAIL
    assert chi_square(temperature, top_p, allowed, 1.5 * temperature) > UPPER_TAIL


def test_nucleus_is_the_smallest_set_that_has_the_probability() -> None:
    """Tokens enter by probability until they have `top_p`; the likeliest is always in."""
    scores = torch.tensor([0.2, 0.5, 0.3]).log()
    assert nucleus(scores, 0.5).tolist() == [False, True, False]
    assert nucleus(scores, 0.51).tolist() == [False, True, True]
    assert nucleus(scores, 0.81).tolist() == [True, True, True]
    assert nucleus(scores, 1e-300).tolist() == [False, True, False]


def test_extreme_temperatures_are_finite() -> None:
    """Temperature 0 and the smallest positive one take the likeliest token."""
    noise = gumbel_noise(3, 0, len(LOGITS), "cpu")
    rows = torch.stack([LOGITS, LOGITS.flip(0)])
    for temperature in (0.0, 5e-324, 1e-300):
        assert choose(rows, temperature, 1.0, noise).tolist() == [0, 5]


def test_rounding_does_not_change_a_draw() -> None:
    """Logits that differ by rounding draw the same tokens with the same noise, and others with
    other noise."""
    dice = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 5000, generator=dice)
    moved = logits + 1e-6 * torch.randn(200, 5000, generator=dice)
    for top_p in (1.0, 0.9):
        noise = gumbel_noise(0, 0, 5000, "cpu")
        drawn = choose(logits, 1.0, top_p, noise)
        assert torch.equal(drawn, choose(moved, 1.0, top_p, noise))
        other = choose(logits, 1.0, top_p, gumbel_noise(0, 1, 5000, "cpu"))
        assert (drawn == other).float().mean() < 0.1
