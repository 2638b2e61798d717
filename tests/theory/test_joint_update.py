"""The joint patch ΔW_in = N⁺(N_C − N)W, ΔW_out = Φ_C⁺(H_C − H), in float64, without a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.theory import (
    DependentRows,
    JointUpdate,
    LowRank,
    NonFinite,
    implicit_update,
    joint_update,
)
from service.theory.joint_update import least_norm
from tests.theory.layers import EXACT, Dense, Layer, random_layer, relative

few = settings(derandomize=True, max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 6)
WIDTH, HIDDEN = 14, 14


def act_of(layer: Layer, n: Tensor) -> Tensor:
    """mlp_act computed from mlp_in."""
    return F.gelu(n @ layer.w_in + layer.b_in, approximate="tanh")


def joint_of(layer: Layer) -> JointUpdate:
    """The service's joint update."""
    act = act_of(layer, layer.n_context)
    w_in = Dense(layer.w_in)
    return joint_update(layer.n, layer.n_context, layer.h, layer.h_context, act, w_in)


def errors(layer: Layer, w_in: Tensor, w_out: Tensor) -> tuple[float, float]:
    """The largest error over positions at mlp_pre and at the block's output, with dense
    matrices."""
    pre = layer.n @ (layer.w_in + w_in)
    act = F.gelu(pre + layer.b_in, approximate="tanh")
    return (
        relative(pre, layer.n_context @ layer.w_in),
        relative(layer.h + act @ (layer.w_out + w_out), layer.output(layer.h_context)),
    )


def drawn(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed % 2**32), dtype=torch.float64
    )


@few
@given(seeds, counts)
def test_joint_patch_is_exact_at_every_position(seed: int, count: int) -> None:
    """N·(W + ΔW_in) = N_C·W, and with ΔW_out the block's output equals that with context."""
    layer = random_layer(seed, count, width=16, hidden=24)
    joint = joint_of(layer)
    lost = joint.conditions[0] * joint.conditions[1]
    assert max(errors(layer, joint.w_in.dense(), joint.w_out.dense())) <= EXACT * max(1, lost / 100)
    factored = layer.n @ layer.w_in + joint.w_in.apply(layer.n)
    assert relative(factored, layer.n_context @ layer.w_in) <= EXACT


def planted(layer: Layer) -> dict[str, tuple[Tensor, Tensor]]:
    """Wrong patches by name: their ΔW_in and ΔW_out."""
    joint = joint_of(layer)
    w_in, w_out = joint.w_in.dense(), joint.w_out.dense()
    shift, delta_h = (layer.n_context - layer.n) @ layer.w_in, layer.h_context - layer.h
    single = implicit_update(layer.n, layer.n_context, layer.h, layer.h_context, Dense(layer.w_in))
    n, act = layer.n, act_of(layer, layer.n_context)
    ridge = n.T @ torch.linalg.inv(n @ n.T + 1e-6 * torch.eye(len(n), dtype=n.dtype))
    nothing = torch.zeros_like(w_in)
    return {
        "the sum of single updates": (single.weight.dense().sum(0), w_out),
        "the mean of single updates": (single.weight.dense().mean(0), w_out),
        "N_C for N": (torch.linalg.pinv(layer.n_context) @ shift, w_out),
        "transpose for inverse": (n.T @ shift / (n * n).sum(-1).mean(), w_out),
        "ridge regression": (ridge @ shift, w_out),
        "Δh for Δn": (torch.linalg.pinv(n) @ delta_h @ layer.w_in, w_out),
        "shifted positions": (torch.linalg.pinv(n) @ shift.roll(1, 0), w_out),
        "no ΔW_in": (nothing, w_out),
        "mlp_act without context": (w_in, torch.linalg.pinv(act_of(layer, n)) @ delta_h),
        "mlp_in for mlp_act": (w_in, torch.linalg.pinv(layer.n_context) @ delta_h),
        "Δn for Δh": (w_in, torch.linalg.pinv(act) @ (layer.n_context - n)),
        "shifted Δh": (w_in, torch.linalg.pinv(act) @ delta_h.roll(1, 0)),
        "one Δh for all": (w_in, torch.linalg.pinv(act) @ delta_h.mean(0).expand_as(delta_h)),
        "no ΔW_out": (w_in, nothing),
    }


LAYER = random_layer(3, 4, width=WIDTH, hidden=HIDDEN)
PLANTED = planted(LAYER)


@pytest.mark.parametrize("name", PLANTED)
def test_wrong_joint_patches_miss_the_bound(name: str) -> None:
    """Each wrong patch misses the block's output by at least 100 bounds."""
    w_in, w_out = PLANTED[name]
    projection, block = errors(LAYER, w_in, w_out)
    assert block > 100 * EXACT
    assert (projection > 100 * EXACT) == (w_in is not PLANTED["no ΔW_out"][0])


@few
@given(seeds, counts)
def test_joint_updates_have_least_norm(seed: int, count: int) -> None:
    """Both are NumPy's pseudo-inverse solutions, and ΔW + Z with N·Z = 0 also solves but is
    larger."""
    layer = random_layer(seed, count)
    joint, act = joint_of(layer), act_of(layer, layer.n_context)
    shift = (layer.n_context - layer.n) @ layer.w_in
    for rows, targets, update, condition in (
        (layer.n, shift, joint.w_in, joint.conditions[0]),
        (act, layer.h_context - layer.h, joint.w_out, joint.conditions[1]),
    ):
        least = np.linalg.pinv(rows.numpy()) @ targets.numpy()
        bound = EXACT * condition
        np.testing.assert_allclose(update.dense(), least, rtol=0, atol=bound * abs(least).max())
        free = drawn(seed, *least.shape)
        z = free - torch.linalg.pinv(rows) @ (rows @ free)
        other = update.dense() + z
        assert relative(rows @ other, targets) <= bound * float(1 + z.norm())
        square = float(update.norm**2 + z.norm() ** 2)
        assert float(other.norm()) == pytest.approx(square**0.5, rel=bound)


@few
@given(seeds, st.integers(1, 5))
def test_norms_from_factors_equal_those_of_the_dense_matrix(seed: int, rank: int) -> None:
    """The Frobenius norm of inputᵀ·output equals that of the dense matrix."""
    update = LowRank(drawn(seed, rank, 9), drawn(seed + 1, rank, 13))
    dense = update.dense().numpy()
    assert float(update.norm) == pytest.approx(np.linalg.norm(dense), rel=EXACT)
    x = drawn(seed + 2, 4, 9)
    applied = x @ update.dense()
    assert relative(update.apply(x), applied) <= EXACT * 100
    if rank > 1:
        apart = (update.input.norm(dim=1) * update.output.norm(dim=1)).square().sum().sqrt()
        assert abs(float(apart) / float(update.norm) - 1) > 1e-6


@few
@given(seeds)
def test_joint_update_of_one_position_equals_the_rank_one_update(seed: int) -> None:
    """For m = 1 ΔW_in equals ΔW, and ΔW_out equals φ_CᵀΔh/‖φ_C‖² (theory.md 3)."""
    layer = random_layer(seed, 1)
    joint, act = joint_of(layer), act_of(layer, layer.n_context)
    single = implicit_update(layer.n, layer.n_context, layer.h, layer.h_context, Dense(layer.w_in))
    dense = single.weight.dense()[0]
    scale = float(dense.abs().max())
    torch.testing.assert_close(joint.w_in.dense(), dense, rtol=0, atol=EXACT * scale)
    assert float(joint.w_in.norm) == pytest.approx(float(single.weight.norm[0]), rel=EXACT)
    spread = torch.outer(act[0], single.bias[0]) / (act[0] @ act[0])
    torch.testing.assert_close(joint.w_out.dense(), spread, rtol=EXACT, atol=1e-13)


def conditioned(condition: float, rows: int = 3, columns: int = 8) -> Tensor:
    """Rows whose largest singular value is `condition` times the smallest."""
    left = torch.linalg.qr(drawn(1, rows, rows))[0]
    right = torch.linalg.qr(drawn(2, columns, rows))[0]
    values = torch.logspace(0, -float(np.log10(condition)), rows, dtype=torch.float64)
    rows_of: Tensor = (left * values) @ right.T
    return rows_of


@pytest.mark.parametrize("condition", [1.0, 30.0, 9.99e3, 1.001e4, 1e9])
def test_condition_is_reported_and_bounded(condition: float) -> None:
    """σ_max/σ_min is in the answer up to 10⁴, and in the refusal above it."""
    rows, targets = conditioned(condition), drawn(3, 3, 5)
    if condition <= 1e4:
        assert least_norm(rows, targets)[1] == pytest.approx(condition, rel=1e-6)
        return
    with pytest.raises(DependentRows) as refused:
        least_norm(rows, targets)
    assert refused.value.condition == pytest.approx(condition, rel=1e-6)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(drawn(1, 1, 6).expand(2, 6), id="the same row twice"),
        pytest.param(
            torch.cat([drawn(1, 2, 6), drawn(1, 2, 6).sum(0)[None]]), id="a row that is a sum"
        ),
        pytest.param(torch.cat([drawn(1, 2, 6), torch.zeros(1, 6)]), id="a row of zeros"),
        pytest.param(torch.zeros(2, 6, dtype=torch.float64), id="all zeros"),
        pytest.param(drawn(1, 7, 6), id="more rows than columns"),
    ],
)
def test_dependent_rows_are_refused(rows: Tensor) -> None:
    """The solver refuses if no exact patch exists, although a least-squares solution exists."""
    targets = drawn(5, len(rows), 4)
    with pytest.raises(DependentRows) as refused:
        least_norm(rows, targets)
    assert not refused.value.condition <= 1e14
    least = torch.linalg.pinv(rows) @ targets
    assert relative(rows @ least, targets) > 1e-3


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_vectors_raise_non_finite(which: int, value: float) -> None:
    """NaN or infinity in any of the vectors raises an error."""
    layer = random_layer(0, 2)
    act = act_of(layer, layer.n_context)
    vectors = (layer.n, layer.n_context, layer.h, layer.h_context, act)
    n, n_context, h, h_context, act = (vector.clone() for vector in vectors)
    (n, n_context, h, h_context, act)[which][1, 2] = value
    with pytest.raises(NonFinite):
        joint_update(n, n_context, h, h_context, act, Dense(layer.w_in))
