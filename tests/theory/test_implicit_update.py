"""The identity ΔW = nᵀ(Δn·W)/‖n‖², Δh = h_C − h, in float64 and without a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.theory import (
    ImplicitUpdate,
    RankOne,
    below_noise,
    concatenated,
    implicit_update,
    is_finite,
    output_update,
    update_on_base,
)
from tests.theory.layers import EXACT, Dense, Layer, random_layer, relative

few = settings(derandomize=True, max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
widths = st.integers(2, 16)
batches = st.sampled_from([(), (1,), (3,), (2, 3)])


def update_of(layer: Layer) -> ImplicitUpdate:
    """The service's update."""
    return implicit_update(layer.n, layer.n_context, layer.h, layer.h_context, Dense(layer.w_in))


def projection_error(layer: Layer, weight: Tensor) -> float:
    """Relative error of n·(W + ΔW) to n_C·W, with dense matrices."""
    actual = torch.einsum("...i,...io->...o", layer.n, layer.w_in + weight)
    return relative(actual, layer.n_context @ layer.w_in)


def block_error(layer: Layer, weight: Tensor, bias: Tensor) -> float:
    """Relative error of the block's output under W + ΔW and Δh to the output with context."""
    actual = layer.output(layer.h, layer.w_in + weight) + bias
    return relative(actual, layer.output(layer.h_context))


@few
@given(seeds, batches, widths, widths)
def test_patched_projection_equals_projection_with_context(
    seed: int, batch: tuple[int, ...], width: int, hidden: int
) -> None:
    """n·(W + ΔW) = n_C·W up to rounding, for any shape and batch."""
    layer = random_layer(seed, *batch, width=width, hidden=hidden)
    update = update_of(layer)
    assert update.weight.dense().shape == (*batch, width, hidden)
    assert projection_error(layer, update.weight.dense()) <= EXACT
    factored = layer.n @ layer.w_in + update.weight.apply(layer.n)
    assert relative(factored, layer.n_context @ layer.w_in) <= EXACT


@few
@given(seeds, batches, st.floats(-3.0, 3.0))
def test_patched_block_equals_block_with_context(
    seed: int, batch: tuple[int, ...], exponent: float
) -> None:
    """With ΔW and Δh the block's output equals that with context, at any scale of the stream."""
    layer = random_layer(seed, *batch)
    scaled = Layer(
        layer.gain,
        layer.shift,
        layer.w_in,
        layer.b_in,
        layer.w_out,
        layer.h * 10.0**exponent,
        layer.h_context,
    )
    update = update_of(scaled)
    cancelled = 1.0 + 10.0**exponent
    assert block_error(scaled, update.weight.dense(), update.bias) <= EXACT * cancelled


def planted(layer: Layer) -> dict[str, tuple[Tensor, Tensor]]:
    """Wrong updates by name: their ΔW and Δh."""
    right = update_of(layer)
    n, delta_n = layer.n, layer.n_context - layer.n
    h, delta_h = layer.h, layer.h_context - layer.h
    squared = (n * n).sum(-1, keepdim=True)

    def weight(given: Tensor, moved: Tensor) -> Tensor:
        return RankOne(given, moved @ layer.w_in).dense()

    dense, bias = right.weight.dense(), right.bias
    return {
        "ε in the denominator": (weight(n / (squared + 1e-8), delta_n), bias),
        "norm not squared": (weight(n / squared.sqrt(), delta_n), bias),
        "Δh for Δn": (weight(n / squared, delta_h), bias),
        "readings before ln_2": (weight(h / (h * h).sum(-1, keepdim=True), delta_h), bias),
        "opposite sign": (-dense, bias),
        "n_C for n": (
            weight(layer.n_context / (layer.n_context**2).sum(-1, keepdim=True), delta_n),
            bias,
        ),
        "transposed factors": (dense.transpose(-1, -2), bias),
        "shifted positions": (dense.roll(1, 0), bias),
        "no ΔW": (torch.zeros_like(dense), bias),
        "Δn for Δh": (dense, delta_n),
        "no Δh": (dense, torch.zeros_like(bias)),
        "half of Δh": (dense, bias / 2),
        "Δh of shifted positions": (dense, bias.roll(1, 0)),
    }


PLANTED = list(planted(random_layer(0, 3, width=14, hidden=14)))


@pytest.mark.parametrize("name", PLANTED)
def test_wrong_updates_miss_the_block_bound(name: str) -> None:
    """Each wrong update misses the block's output by at least 100 bounds."""
    layer = random_layer(0, 3, width=14, hidden=14)
    assert block_error(layer, *planted(layer)[name]) > 100 * EXACT


@pytest.mark.parametrize(
    "name", [name for name in PLANTED if not name.endswith(("Δh", "positions"))]
)
def test_wrong_weight_updates_miss_the_projection_bound(name: str) -> None:
    """Each wrong ΔW misses n_C·W by at least 100 bounds."""
    layer = random_layer(0, 3, width=14, hidden=14)
    assert projection_error(layer, planted(layer)[name][0]) > 100 * EXACT


@few
@given(seeds)
def test_update_is_the_solution_of_least_norm(seed: int) -> None:
    """ΔW is NumPy's pseudo-inverse solution, and ΔW + Z with n·Z = 0 also solves but is larger."""
    layer = random_layer(seed)
    n, update = layer.n, update_of(layer)
    dense = update.weight.dense()
    target = (layer.n_context - n) @ layer.w_in
    least = np.linalg.pinv(n.numpy()[None]) @ target.numpy()[None]
    np.testing.assert_allclose(dense, least, rtol=0, atol=1e-12 * abs(least).max())
    free = torch.randn(dense.shape, generator=torch.Generator().manual_seed(seed)).double()
    z = free - torch.outer(n, n @ free) / (n @ n)
    assert projection_error(layer, dense + z) <= 10 * EXACT
    pythagoras = torch.sqrt(update.weight.norm**2 + torch.linalg.matrix_norm(z) ** 2)
    assert float(torch.linalg.matrix_norm(dense + z)) == pytest.approx(float(pythagoras), rel=1e-12)
    assert float(torch.linalg.matrix_norm(dense + z)) > float(update.weight.norm)


@few
@given(seeds, batches, widths, widths)
def test_norm_is_bounded_by_the_spectral_norm(
    seed: int, batch: tuple[int, ...], width: int, hidden: int
) -> None:
    """‖ΔW‖ ≤ ‖W‖₂·‖Δn‖/‖n‖, with ‖W‖₂ by NumPy's SVD."""
    layer = random_layer(seed, *batch, width=width, hidden=hidden)
    spectral = np.linalg.svd(layer.w_in.numpy(), compute_uv=False)[0]
    distance = (layer.n_context - layer.n).norm(dim=-1)
    bound = spectral * distance / layer.n.norm(dim=-1)
    assert bool((update_of(layer).weight.norm <= bound * (1 + 1e-12)).all())


def test_norm_bound_is_reached_along_a_singular_vector() -> None:
    """If Δn is W's first left singular vector the norm equals ‖W‖₂·‖Δn‖/‖n‖."""
    layer = random_layer(4)
    left, values, _ = np.linalg.svd(layer.w_in.numpy())
    moved = layer.n + 0.7 * torch.from_numpy(left[:, 0])
    update = implicit_update(layer.n, moved, layer.h, layer.h_context, Dense(layer.w_in))
    expected = values[0] * 0.7 / float(layer.n.norm())
    assert float(update.weight.norm) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_equal_readings_give_a_zero_update(batch: tuple[int, ...]) -> None:
    """If the context changes nothing, ΔW and Δh are exactly zero."""
    layer = random_layer(1, *batch)
    update = implicit_update(layer.n, layer.n, layer.h, layer.h, Dense(layer.w_in))
    assert not update.weight.dense().any()
    assert not update.bias.any()
    assert bool((update.weight.norm == 0).all())


@few
@given(seeds)
def test_updates_on_one_base_add_up(seed: int) -> None:
    """n to n₁ plus n₁ to n₂, both on the base n, equals the update from n to n₂."""
    layer, middle = random_layer(seed), random_layer(seed + 1)
    n, w = layer.n, layer.w_in
    first = update_on_base(n, n, middle.n, Dense(w))
    second = update_on_base(n, middle.n, layer.n_context, Dense(w))
    total = update_of(layer).weight.dense()
    assert relative((first.dense() + second.dense()).flatten(), total.flatten()) <= EXACT
    by_hand = torch.outer(n, (layer.n_context - middle.n) @ w) / (n @ n)
    assert relative(second.dense().flatten(), by_hand.flatten()) <= EXACT


@few
@given(seeds, batches)
def test_gate_and_up_side_by_side_are_one_weight(seed: int, batch: tuple[int, ...]) -> None:
    """ΔW of [W_gate | W_up] is both updates side by side, has rank 1 and σ² = σ_gate² + σ_up², and
    reproduces act(gate) ⊙ up with context."""
    layer = random_layer(seed, *batch, hidden=20)
    gate, up = layer.w_in.chunk(2, -1)
    both, of_gate, of_up = (
        update_of(replace(layer, w_in=w)).weight for w in (layer.w_in, gate, up)
    )
    side_by_side = torch.cat([of_gate.dense(), of_up.dense()], -1)
    torch.testing.assert_close(both.dense(), side_by_side, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(both.norm**2, of_gate.norm**2 + of_up.norm**2, rtol=EXACT, atol=0.0)

    def gated(n: Tensor, weight: Tensor) -> Tensor:
        left, right = torch.einsum("...i,...io->...o", n, weight).chunk(2, -1)
        return torch.nn.functional.silu(left) * right

    weight = layer.w_in.expand(*batch, *layer.w_in.shape)
    expected = gated(layer.n_context, weight)
    assert relative(gated(layer.n, weight + both.dense()), expected) <= 10 * EXACT
    assert relative(gated(layer.n, weight), expected) > 0.1


@few
@given(seeds, batches)
def test_parallel_block_with_equal_input_needs_the_bias_alone(
    seed: int, batch: tuple[int, ...]
) -> None:
    """If the MLP reads the block's input and that is the same in both runs, ΔW is exactly zero and
    Δh alone gives the block's output with context."""
    layer = random_layer(seed, *batch)
    r = 0.5 * layer.h
    n = layer.ln_2(r)
    update = implicit_update(n, n, layer.h, layer.h_context, Dense(layer.w_in))
    assert bool((update.weight.norm == 0).all())
    mlp = layer.output(r) - r
    assert relative(layer.h + mlp + update.bias, layer.h_context + mlp) <= EXACT
    assert relative(layer.h + mlp, layer.h_context + mlp) > 0.1


def test_leading_dimensions_do_not_change_the_numbers() -> None:
    """An update of (2, 3) positions equals bit by bit that of the six positions in a row, and in
    float32 its output factor is `Δn @ W`."""
    layer = random_layer(5, 6)
    n, n_c, h, h_c, w = (
        x.float() for x in (layer.n, layer.n_context, layer.h, layer.h_context, layer.w_in)
    )
    flat = implicit_update(n, n_c, h, h_c, Dense(w))
    n_2, n_c_2, h_2, h_c_2 = (x.reshape(2, 3, -1) for x in (n, n_c, h, h_c))
    folded = implicit_update(n_2, n_c_2, h_2, h_c_2, Dense(w))
    assert torch.equal(flat.weight.output, (n_c.double() - n.double()).float() @ w)
    assert torch.equal(folded.weight.output.reshape(6, -1), flat.weight.output)
    assert torch.equal(folded.weight.input.reshape(6, -1), flat.weight.input)
    assert torch.equal(folded[1].bias, flat.bias[3:])


def test_forming_an_update_reads_nothing_back() -> None:
    """`implicit_update` and `is_finite` work on tensors without values, so they never wait for a
    device."""
    layer = random_layer(0, 3)
    n, n_c, h, h_c, w = (
        x.to("meta") for x in (layer.n, layer.n_context, layer.h, layer.h_context, layer.w_in)
    )
    assert is_finite(implicit_update(n, n_c, h, h_c, Dense(w))).device.type == "meta"


def test_index_and_cast_act_on_all_parts() -> None:
    """[] and `to` act on ΔW, on Δh and on the weights that carry Δh; None adds a dimension."""
    layer = random_layer(3, 4)
    update = update_of(layer)
    assert update[1].out is None
    assert update[None].bias.shape == (1, 4, 12)
    carried = replace(update, out=output_update(layer.h_context, update.bias))
    chosen = carried[torch.tensor([2, 0])].to(torch.float32)
    assert chosen.out is not None
    for part in (chosen.weight.input, chosen.weight.output, chosen.bias, chosen.out.weight.output):
        assert part.dtype == torch.float32
        assert len(part) == 2
    assert torch.equal(chosen.out.weight.output, update.bias[[2, 0]].float())


def test_variants_keep_or_drop_the_weights_that_carry_the_shift() -> None:
    """`without_bias` drops the weights that carry Δh; `without_weight` and `with_output` keep
    them."""
    layer = random_layer(3, 2)
    update = update_of(layer)
    carried = replace(update, out=output_update(layer.h_context, update.bias))
    assert carried.without_bias().out is None
    assert not carried.without_bias().bias.any()
    assert carried.without_weight().out is carried.out
    assert carried.with_output(update.weight.output).out is carried.out


def test_variants_of_an_update_change_one_part() -> None:
    """`without_weight`, `without_bias` and `with_output` each change one part and keep the rest."""
    layer = random_layer(3, 2)
    update, other = update_of(layer), torch.ones(2, 20, dtype=torch.float64)
    assert not update.without_weight().weight.dense().any()
    assert torch.equal(update.without_weight().bias, update.bias)
    assert not update.without_bias().bias.any()
    assert torch.equal(update.without_bias().weight.dense(), update.weight.dense())
    changed = update.with_output(other)
    assert torch.equal(changed.weight.output, other)
    assert torch.equal(changed.weight.input, update.weight.input)
    assert torch.equal(changed.bias, update.bias)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["n", "n_context", "h", "h_context"])
def test_update_of_zero_or_non_finite_readings_is_not_finite(where: str, bad: float) -> None:
    """`is_finite` is false where ‖n‖ = 0, or NaN or infinity stand at one position of a batch;
    zeros elsewhere are ordinary values."""
    layer = random_layer(2, 3)
    readings = {name: getattr(layer, name).clone() for name in ("n", "n_context", "h", "h_context")}
    readings[where][1] = bad
    formed = implicit_update(w_in=Dense(layer.w_in), **readings)
    assert bool(is_finite(formed)) == (bad == 0.0 and where != "n")
    if where in ("n", "n_context"):
        # The norm of each position says so as well, with which `analysis` tests it.
        is_formed = bad == 0.0 and where != "n"
        assert torch.isfinite(formed.weight.norm).tolist() == [True, is_formed, True]


def test_update_whose_norm_overflows_is_not_finite() -> None:
    """`is_finite` is false of a finite n whose ‖n‖² overflows: its input factor is zero."""
    layer = random_layer(2, 3)
    n = layer.n.clone()
    n[1] = 1e200
    update = implicit_update(n, n, layer.h, layer.h_context, Dense(layer.w_in))
    assert not bool(is_finite(update))


@pytest.mark.parametrize(
    ("dtype", "output"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_differences_are_formed_in_float64(dtype: torch.dtype, output: torch.dtype) -> None:
    """Factors from readings of any dtype equal the float64 factors of the rounded readings."""
    layer = random_layer(6, 4, width=32, hidden=48)
    n, n_c, h, h_c, w = (
        x.to(dtype) for x in (layer.n, layer.n_context, layer.h, layer.h_context, layer.w_in)
    )
    update = implicit_update(n, n_c, h, h_c, Dense(w))
    assert update.weight.input.dtype == update.bias.dtype == torch.float64
    assert update.weight.output.dtype == output
    assert torch.equal(update.bias, h_c.double() - h.double())
    base = n.double()
    np.testing.assert_allclose(
        update.weight.input, base / (base * base).sum(-1, keepdim=True), rtol=1e-14
    )
    exact = (n_c.double() - base) @ w.double()
    assert relative(update.weight.output.double(), exact) <= (1e-6, 1e-14)[output == torch.float64]
    assert update.to(torch.float32).bias.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("factor", "noise"), [(63.0, True), (65.0, False)])
def test_below_noise_is_64_epsilon(dtype: torch.dtype, factor: float, noise: bool) -> None:
    """‖Δn‖ just under 64·ε·‖n‖ is flagged and just over is not, with ε of the pass's dtype."""
    n = random_layer(8, 2, 3).n
    step = factor * torch.finfo(dtype).eps * n.norm(dim=-1, keepdim=True)
    moved = n + step * torch.ones_like(n) / n.shape[-1] ** 0.5
    flagged = below_noise(n, moved, dtype)
    assert flagged.shape == (2, 3)
    assert bool((flagged == noise).all())


def test_concatenated_updates_are_those_of_each_batch() -> None:
    """Batches of updates side by side are one batch, with their changes of the second weight."""
    layers = [random_layer(seed, count) for seed, count in ((0, 2), (1, 3))]
    batches = [update_of(layer) for layer in layers]
    whole = concatenated(batches)
    assert whole.out is None
    outs = [
        output_update(layer.n.exp(), update.bias)
        for layer, update in zip(layers, batches, strict=True)
    ]
    carried = concatenated(
        [replace(update, out=out) for update, out in zip(batches, outs, strict=True)]
    )
    assert carried.out is not None
    start = 0
    for update, out in zip(batches, outs, strict=True):
        part = slice(start, start + len(update.bias))
        start = part.stop
        for found in (whole[part], carried[part]):
            assert torch.equal(found.bias, update.bias)
            assert torch.equal(found.weight.dense(), update.weight.dense())
        assert torch.equal(carried.out[part].weight.dense(), out.weight.dense())
