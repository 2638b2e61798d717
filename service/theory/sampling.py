"""The next token of a run, by the Gumbel-max trick with noise that several runs share.

argmax over i of log p_i / T + g_i, with independent Gumbel noise g, is a draw from softmax(log p /
T) (Maddison et al., arXiv 1411.0030). The noise depends on the seed, the step and the token alone.
So two runs whose distributions agree but for rounding choose the same token, unless two scores
nearly tie. The inverse of the cumulative distribution lacks this property: a rounding error of one
token moves the borders of all tokens after it.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
"""The increment of SplitMix64 (Steele et al., 2014), 2⁶⁴ divided by the golden ratio."""
ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
"""Shift and factor of each round of SplitMix64's mixing function."""
LAST_SHIFT = 31
UNIFORM_BITS = 52
"""Bits of a uniform number. With one bit more, half a step would round to 1."""


def choose(
    logits: Tensor, temperature: float = 0.0, top_p: float = 1.0, noise: Tensor | None = None
) -> Tensor:
    """Choose the next token of each run, (..., vocab) to (...).

    Args:
        logits: Logits of each run.
        temperature: T; 0 takes the likeliest token.
        top_p: The token is among the likeliest ones whose probabilities at T add up to this.
        noise: Gumbel noise, (vocab,), shared by all runs; None: 0.
    """
    if temperature == 0.0:
        return logits.argmax(-1)
    wide = logits.double()
    # The greatest score is 0, so that no temperature makes it infinite.
    scores = (wide - wide.amax(-1, keepdim=True)) / temperature
    if top_p < 1.0:
        scores = scores.masked_fill(~nucleus(scores, top_p), -torch.inf)
    return (scores if noise is None else scores + noise).argmax(-1)


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Whether each token is in the smallest set of likeliest tokens that has the probability
    `top_p` (Holtzman et al., arXiv 1904.09751), (..., vocab) to (..., vocab).

    Args:
        scores: Unnormalised log-probabilities.
        top_p: A probability above 0. The likeliest token is always in the set.
    """
    ordered, order = scores.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    likelier = ordered.cumsum(-1) - ordered
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, likelier < top_p)


def gumbel_noise(seed: int, step: int, vocabulary: int, device: torch.device | str) -> Tensor:
    """Standard Gumbel noise of each token, (vocabulary,), float64.

    Args:
        seed: From 0 to 2⁶⁴ − 1.
        step: Number of tokens before this one.
        vocabulary: Number of tokens.
        device: The device of the noise. Its random numbers do not depend on it.
    """
    key = _mixed(_mixed(seed + GOLDEN) + step * GOLDEN)
    token = torch.arange(1, vocabulary + 1, device=device)
    bits = token * _signed(GOLDEN) + _signed(key)
    for shift, factor in ROUNDS:
        bits = (bits ^ _shifted(bits, shift)) * _signed(factor)
    bits = bits ^ _shifted(bits, LAST_SHIFT)
    uniform = (_shifted(bits, 64 - UNIFORM_BITS).double() + 0.5) * 2.0**-UNIFORM_BITS
    return -(-uniform.log()).log()


def _mixed(value: int) -> int:
    """SplitMix64's mixing function of one number modulo 2⁶⁴."""
    value &= MASK
    for shift, factor in ROUNDS:
        value = ((value ^ value >> shift) * factor) & MASK
    return value ^ value >> LAST_SHIFT


def _signed(value: int) -> int:
    """The int64 that has the bits of a number below 2⁶⁴; torch multiplies modulo 2⁶⁴."""
    return (value & MASK) - (value >> 63 << 64)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """A shift to the right that fills with zeros; torch's own fills with the sign."""
    shifted: Tensor = (bits >> by) & (2 ** (64 - by) - 1)
    return shifted
