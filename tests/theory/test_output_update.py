"""Δh carried by the second weight and the gain of a post-norm, compared with NumPy in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.theory import (
    OutputUpdate,
    RankOne,
    implicit_update,
    is_finite,
    output_update,
    post_norm_update,
)
from tests.theory.layers import EXACT, Dense, random_layer, relative

few = settings(derandomize=True, max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
batches = st.sampled_from([(), (1,), (3,), (2, 3)])
widths = st.integers(2, 16)
EPS = 1e-6
TINY = math.ulp(0.0)
ODD_GAINS = [0.0, -0.0, TINY, -TINY, 1e-310, -1e-12, 1e-3, -2.0]
"""Gains of zero, subnormal gains, small ones, and a negative one."""


def normed(y: Tensor, gain: Tensor, eps: float = EPS) -> Tensor:
    """RMS norm written out: gain ⊙ y / sqrt(mean(y²) + ε)."""
    return gain * y / torch.sqrt((y * y).mean(-1, keepdim=True) + eps)


@dataclass(frozen=True, eq=False)
class Half:
    """The second half of a gated block with an RMS norm after its MLP, as random tensors.

    Args:
        act: mlp_act with context, (..., hidden).
        w_out: Second weight, (hidden, width).
        gain: Gain of the post-norm, (width).
        shift: Δh, (..., width).
    """

    act: Tensor
    w_out: Tensor
    gain: Tensor
    shift: Tensor

    @property
    def out(self) -> Tensor:
        """The post-norm's input with context."""
        return self.act @ self.w_out

    @property
    def wanted(self) -> Tensor:
        """m* = m_C + Δh, which the patched post-norm has to give."""
        return normed(self.out, self.gain) + self.shift

    @property
    def readings(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The tensors from which the update is formed."""
        return self.act, self.out, normed(self.out, self.gain), self.shift, self.gain

    def update(self) -> OutputUpdate:
        """The service's update."""
        return post_norm_update(*self.readings, EPS)

    def error(self, update: OutputUpdate) -> float:
        """Relative error of the patched post-norm's output to m*, with dense matrices."""
        assert update.gain is not None
        patched = torch.einsum("...i,...io->...o", self.act, self.w_out + update.weight.dense())
        return relative(normed(patched, update.gain), self.wanted)


def half(seed: int, *batch: int, width: int = 12, hidden: int = 20, scale: float = 1.0) -> Half:
    """A float64 half block with some odd gains, all drawn from one seed."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    gain = 2.0 * draw(width)
    odd = torch.tensor(ODD_GAINS, dtype=torch.float64)[: width // 2]
    gain[: len(odd)] = odd
    return Half(
        draw(*batch, hidden), draw(hidden, width) / hidden**0.5, gain, scale * draw(*batch, width)
    )


def by_hand(one: Half, row: int) -> tuple[Any, Any, list[bool]]:
    """y' − y_C, the gain and the lifted entries of one row of (rows, ...), entry by entry."""
    y, m = one.out[row].numpy(), one.wanted[row].numpy()
    t, gain, lifted = [], [], []
    for target, g in zip(m.tolist(), one.gain.tolist(), strict=True):
        lift = target != 0 and (g == 0 or abs(target) > 8 * abs(g))
        sign = math.copysign(1.0, target) * (-1.0 if g < 0 else 1.0)
        t.append(0.0 if target == 0 else 8.0 * sign if lift else target / g)
        gain.append(target / t[-1] if lift else g)
        lifted.append(lift)
    rms_y, rms_t = np.sqrt(np.mean(y**2)), np.sqrt(np.mean(np.square(t)))
    moved = np.asarray(t) * rms_y / rms_t
    return moved - y, rms_t * np.sqrt(rms_y**2 + EPS) / rms_y * np.asarray(gain), lifted


@few
@given(seeds, batches, widths, st.floats(-3.0, 3.0))
def test_second_weight_adds_the_shift(
    seed: int, batch: tuple[int, ...], width: int, exponent: float
) -> None:
    """φ_C·(W_out + ΔW_out) = φ_C·W_out + Δh at any size of Δh, with ΔW_out = φ_Cᵀ Δh/‖φ_C‖²."""
    one = half(seed, *batch, width=width, scale=10.0**exponent)
    update = output_update(one.act, one.shift)
    assert update.gain is None
    assert update.lifted is None
    changed = one.w_out + update.weight.dense()
    expected = one.out + one.shift
    assert relative(torch.einsum("...i,...io->...o", one.act, changed), expected) <= EXACT
    assert relative(one.out + update.weight.apply(one.act), expected) <= EXACT
    dense = update.weight.dense().reshape(-1, 20, width)
    acts, shifts = one.act.reshape(-1, 20).numpy(), one.shift.reshape(-1, width).numpy()
    for found, act, shift in zip(dense, acts, shifts, strict=True):
        least = np.linalg.pinv(act[None]) @ shift[None]
        np.testing.assert_allclose(found, least, rtol=0, atol=EXACT * abs(least).max())


@few
@given(seeds, batches, widths, st.floats(-3.0, 3.0))
def test_patched_post_norm_gives_its_output_with_the_shift(
    seed: int, batch: tuple[int, ...], width: int, exponent: float
) -> None:
    """N(φ_C·(W_out + ΔW_out)) with the new gain is m_C + Δh, also with gains of zero, subnormal and
    negative gains; its input keeps its length."""
    one = half(seed, *batch, width=width, scale=10.0**exponent)
    update = one.update()
    assert update.gain is not None
    assert update.gain.shape == one.shift.shape
    assert one.error(update) <= EXACT
    patched = one.out + update.weight.apply(one.act)
    assert relative(normed(patched, update.gain), one.wanted) <= EXACT
    torch.testing.assert_close(patched.norm(dim=-1), one.out.norm(dim=-1), rtol=EXACT, atol=0.0)


@few
@given(seeds, st.floats(-3.0, 3.0))
def test_post_norm_update_equals_the_formulas_entry_by_entry(seed: int, exponent: float) -> None:
    """y' − y_C, the gain and the lifted entries equal those computed one entry at a time."""
    one = half(seed, 3, scale=10.0**exponent)
    update = one.update()
    assert update.gain is not None
    assert update.lifted is not None
    for row in range(3):
        moved, gain, lifted = by_hand(one, row)
        np.testing.assert_allclose(update.weight.output[row], moved, rtol=EXACT, atol=EXACT)
        np.testing.assert_allclose(update.gain[row], gain, rtol=EXACT)
        assert update.lifted[row].tolist() == lifted


def test_gains_of_zero_are_lifted_and_gains_keep_their_sign() -> None:
    """Every entry with a gain of zero or far too small is lifted, no entry of moderate size is, and
    no gain changes its sign."""
    one = half(1, 4)
    one = replace(one, shift=one.shift.sign() * 3.0)
    update = one.update()
    assert update.gain is not None
    assert update.lifted is not None
    odd = torch.arange(12) < 6  # up to the gain of -1e-12
    assert bool(update.lifted[:, odd].all())
    large = one.gain.abs() > 2.0
    assert bool(large.any())
    assert not bool(update.lifted[:, large].any())
    assert torch.equal(update.gain < 0, (one.gain < 0).expand_as(update.gain))


def test_zero_target_entries_keep_their_gain() -> None:
    """Where m*_j = 0, also with a gain of zero, y'_j is 0, and the gain is scaled alone."""
    one = half(2)
    shift = one.shift.clone()
    at = [0, 11]
    shift[at] = -normed(one.out, one.gain)[at]
    one = replace(one, shift=shift)
    update = one.update()
    assert update.gain is not None
    assert update.lifted is not None
    assert not update.lifted[at].any()
    assert not (one.out + update.weight.output)[at].any()
    scale = update.gain[~update.lifted] / one.gain[~update.lifted]
    assert float(scale[-1]) == pytest.approx(float(scale[1:-1].mean()), rel=EXACT)
    assert one.error(update) <= EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_target_of_zero_gives_zero(dtype: torch.dtype) -> None:
    """If Δh = −m_C, y' and the gain are zero, so the norm gives exactly 0 in any dtype."""
    one = half(3, 2)
    one = replace(one, shift=-normed(one.out, one.gain))
    update = one.update().to(dtype)
    assert update.gain is not None
    assert torch.equal(update.weight.output, -one.out.to(dtype))
    assert not update.gain.any()
    patched = (one.out + update.weight.apply(one.act)).to(dtype)
    assert not normed(patched, update.gain).any()


def test_mlp_output_of_zero_takes_length_one() -> None:
    """If y_C is zero, y' has root mean square 1 and the update is exact."""
    one = half(4, 2)
    one = replace(one, w_out=torch.zeros_like(one.w_out))
    update = one.update()
    assert one.error(update) <= EXACT
    sizes = update.weight.output.square().mean(-1)
    torch.testing.assert_close(sizes, torch.ones_like(sizes), rtol=EXACT, atol=0.0)


def test_float32_recomputation_is_exact_to_rounding() -> None:
    """Rounded to float32 and applied in float32, the update gives m* to 2e-6."""
    one = half(5, 40, width=64, hidden=256)
    update = one.update().to(torch.float32)
    assert update.gain is not None
    act = one.act.float()
    patched = act @ one.w_out.float() + update.weight.apply(act)
    assert patched.dtype == torch.float32
    assert relative(normed(patched, update.gain).double(), one.wanted) <= 2e-6


@few
@given(seeds, batches, st.booleans())
def test_block_with_changed_weights_equals_block_with_context(
    seed: int, batch: tuple[int, ...], post_norm: bool
) -> None:
    """A gated block without any added bias gives its output with context, through ΔW of its first
    weight and Δh in its second weight and in the gain of its post-norm, if it has one."""
    layer = random_layer(seed, *batch, hidden=20)
    w_out = layer.w_out[:10]

    def act_of(pre: Tensor) -> Tensor:
        gate, up = pre.chunk(2, -1)
        return F.silu(gate) * up

    update = implicit_update(layer.n, layer.n_context, layer.h, layer.h_context, Dense(layer.w_in))
    act = act_of(layer.n_context @ layer.w_in)
    y = act @ w_out
    if post_norm:
        m = normed(y, layer.gain)
        carried = post_norm_update(act, y, m, update.bias, layer.gain, EPS)
    else:
        m, carried = y, output_update(act, update.bias)
    update = replace(update, out=carried)
    assert bool(is_finite(update))
    reached = act_of(layer.n @ layer.w_in + update.weight.apply(layer.n))
    patched = reached @ w_out + carried.weight.apply(reached)
    if carried.gain is not None:
        patched = normed(patched, carried.gain)
    assert relative(layer.h + patched, layer.h_context + m) <= 100 * EXACT
    assert relative(layer.h + m, layer.h_context + m) > 0.1


def without_lift(one: Half) -> OutputUpdate:
    """The update with t = m*/g everywhere."""
    t = one.wanted / one.gain
    rms_y, rms_t = (x.square().mean(-1, keepdim=True).sqrt() for x in (one.out, t))
    right = one.update()
    return OutputUpdate(
        RankOne(right.weight.input, t * rms_y / rms_t - one.out),
        rms_t * (rms_y**2 + EPS).sqrt() / rms_y * one.gain,
    )


WRONG: dict[str, Callable[[Half, OutputUpdate], OutputUpdate]] = {
    "gain unchanged": lambda one, right: replace(right, gain=one.gain.expand_as(one.shift)),
    "weight unchanged": lambda one, right: replace(
        right, weight=RankOne(right.weight.input, torch.zeros_like(one.shift))
    ),
    "norm not squared": lambda one, right: replace(
        right,
        weight=RankOne(one.act / one.act.norm(dim=-1, keepdim=True), right.weight.output),
    ),
    "Δh before the norm": lambda one, right: replace(
        right, weight=RankOne(right.weight.input, one.shift)
    ),
    "Δh alone as the target": lambda one, _right: post_norm_update(
        one.act, one.out, torch.zeros_like(one.out), one.shift, one.gain, EPS
    ),
    "ε left out": lambda one, _right: post_norm_update(*one.readings, 0.0),
    "gains not lifted": lambda one, _right: without_lift(one),
    "other positions": lambda _one, right: right[torch.tensor([1, 2, 0])],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_updates_miss_the_bound(name: str) -> None:
    """Each wrong update misses m* by at least 100 bounds, or is not finite."""
    one = half(0, 3)
    assert not one.error(WRONG[name](one, one.update())) <= 100 * EXACT


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", range(5))
def test_update_of_non_finite_values_is_not_finite(where: int, bad: float) -> None:
    """`is_finite` is false where mlp_act, the norm's input or output, Δh or the gain holds NaN or
    infinity."""
    one = half(6, 3)
    readings = [x.clone() for x in one.readings]
    readings[where][-1] = bad
    act, out, m, shift, gain = readings
    assert not bool(post_norm_update(act, out, m, shift, gain, EPS).is_finite)
    if where in (0, 3):
        assert not bool(output_update(act, shift).is_finite)


def test_update_of_a_zero_mlp_act_is_not_finite() -> None:
    """`is_finite` is false where ‖φ_C‖ = 0 at one position, as a ReLU can give; so is the norm of
    that position."""
    one = half(7, 3)
    one.act[1] = 0.0
    for update in (output_update(one.act, one.shift), one.update()):
        assert not bool(update.is_finite)
        assert torch.isfinite(update.weight.norm).tolist() == [True, False, True]


def test_forming_reads_nothing_back() -> None:
    """The pure formulas and `is_finite` work on tensors without values, so they never wait for a
    device."""
    one = half(8, 3)
    readings = [x.to("meta") for x in one.readings]
    formed = post_norm_update(*readings, EPS)  # type: ignore[call-arg, arg-type]
    assert formed.is_finite.device.type == "meta"
    assert output_update(readings[0], readings[3]).is_finite.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_readings_of_any_dtype_give_float64_factors(dtype: torch.dtype) -> None:
    """Readings of any dtype give the float64 update of the rounded readings."""
    one = half(9, 3)
    rounded = [x.to(dtype) for x in one.readings]
    act, out, m, shift, gain = rounded
    found = post_norm_update(act, out, m, shift, gain, EPS)
    act, out, m, shift, gain = (x.double() for x in rounded)
    wide = post_norm_update(act, out, m, shift, gain, EPS)
    assert found.gain is not None
    assert wide.gain is not None
    assert found.weight.input.dtype == found.gain.dtype == torch.float64
    assert torch.equal(found.weight.output, wide.weight.output)
    assert torch.equal(found.gain, wide.gain)


def test_index_and_cast_act_on_all_parts() -> None:
    """[] and `to` act on ΔW_out and on the gain; `lifted` stays bool."""
    update = half(10, 3).update()
    assert update.gain is not None
    assert update.lifted is not None
    one = update[1].to(torch.float32)
    assert one.gain is not None
    assert one.lifted is not None
    assert one.weight.output.dtype == one.gain.dtype == torch.float32
    assert torch.equal(one.gain, update.gain[1].float())
    assert torch.equal(one.lifted, update.lifted[1])
    assert torch.equal(one.weight.input, update.weight.input[1].float())
    assert output_update(*half(10, 3).readings[::3])[0].to(torch.float32).gain is None
