"""The ridge regression of the second weight and its truncation, compared with NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.theory.static_patch import Fitted, mean_output, output_ridge, randomised
from service.theory.static_update import LowRank

Array = NDArray[np.float64]
EXACT = 1e-9
SHAPES = {"fewer rows than columns": (9, 17, 6), "more rows than columns": (40, 11, 6)}
RHO = 0.1
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def drawn(shape: tuple[int, int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """mlp_act and gaps of random rows with unequal lengths, and weights of the rows, float32."""
    rows, hidden, width = shape
    generator = torch.Generator().manual_seed(seed)
    act = torch.randn(rows, hidden, generator=generator) * torch.rand(rows, 1, generator=generator)
    gap = torch.randn(rows, width, generator=generator)
    return act, gap, 0.25 + torch.rand(rows, generator=generator)


def ridge_of(act: Tensor, gap: Tensor, weights: Tensor, rho: float = RHO) -> Array:
    """ΔW as the least-squares solution of the rows with √λ·I below them, (d_mlp, d_model)."""
    rows, goals = act.numpy().astype(np.float64), gap.numpy().astype(np.float64)
    root = np.sqrt(weights.numpy().astype(np.float64))[:, None]
    penalty = rho * np.mean(np.sum(rows**2, -1))
    below = np.sqrt(penalty) * np.eye(rows.shape[1])
    found: Array = np.linalg.lstsq(
        np.vstack([root * rows, below]),
        np.vstack([root * goals, np.zeros((len(below), goals.shape[1]))]),
        rcond=None,
    )[0]
    return found


def matrix_of(fitted: Fitted) -> Array:
    """ΔW as a dense matrix."""
    assert fitted.update.w_out is not None
    dense: Array = fitted.update.w_out.dense().numpy()
    return dense


def relative(actual: Array, expected: Array) -> float:
    """‖actual − expected‖/‖expected‖."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@shapes
def test_full_rank_equals_numpys_ridge_regression(shape: tuple[int, int, int]) -> None:
    """Without truncation ΔW is the minimum of the weighted squares, and other weights or another λ
    give another ΔW."""
    act, gap, weights = drawn(shape)
    fitted = output_ridge(act, gap, weights, RHO, rank=1024)
    assert fitted.rank == min(shape[0], shape[2])
    assert fitted.kept_energy is not None
    assert float(fitted.kept_energy) == pytest.approx(1.0, abs=EXACT)
    assert relative(matrix_of(fitted), ridge_of(act, gap, weights)) <= EXACT
    for wrong in (
        ridge_of(act, gap, torch.ones_like(weights)),
        ridge_of(act, gap, weights, 1.1 * RHO),
        ridge_of(act, gap, weights.square()),
    ):
        assert relative(matrix_of(fitted), wrong) > 1e-3


@shapes
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_truncation_is_the_best_of_its_rank_for_the_action(
    shape: tuple[int, int, int], rank: int
) -> None:
    """XΔW_r is NumPy's truncated SVD of XΔW; the truncated SVD of ΔW itself is further away."""
    act, gap, weights = drawn(shape)
    fitted = output_ridge(act, gap, weights, RHO, rank)
    dense = ridge_of(act, gap, weights)
    x = act.numpy().astype(np.float64) * np.sqrt(weights.numpy().astype(np.float64))[:, None]
    u, s, v = np.linalg.svd(x @ dense, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    assert fitted.rank == rank
    assert fitted.update.w_out is not None
    assert fitted.update.w_out.input.shape == (rank, shape[1])
    assert fitted.kept_energy is not None
    assert float(fitted.kept_energy) == pytest.approx(np.sum(s[:rank] ** 2) / np.sum(s**2))
    assert relative(x @ matrix_of(fitted), best) <= 1e-7
    u, s, v = np.linalg.svd(dense, full_matrices=False)
    of_weight = x @ (u[:, :rank] * s[:rank]) @ v[:rank]
    missed = [np.linalg.norm(x @ dense - one) for one in (x @ matrix_of(fitted), of_weight)]
    assert missed[0] < 0.999 * missed[1]


@shapes
def test_both_systems_solve_dependent_rows_without_a_ridge(shape: tuple[int, int, int]) -> None:
    """With ρ = 0 and repeated rows, ΔW still maps each row to its goal if a matrix can."""
    act, _, weights = drawn(shape)
    truth = torch.randn(shape[1], shape[2], generator=torch.Generator().manual_seed(5))
    rows = torch.cat([act, act[:3]]).double()
    fitted = output_ridge(rows, rows @ truth.double(), torch.cat([weights, weights[:3]]), 0.0, 99)
    assert relative(rows.numpy() @ matrix_of(fitted), (rows @ truth.double()).numpy()) <= 1e-6


@pytest.mark.parametrize("hidden", [100, 2000], ids=["more rows", "fewer rows"])
def test_heavy_equal_rows_are_solved_without_a_ridge(hidden: int) -> None:
    """With ρ = 0 and 60 equal texts of weight 1,000, the fit exists and leaves them unchanged."""
    act, gap, weights = drawn((9, hidden, 6))
    # The least λ is small against rows of length 1, but not against the shortest drawn ones.
    act = torch.nn.functional.normalize(act)
    text = torch.nn.functional.normalize(drawn((12, hidden, 6), seed=1)[0])
    rows = torch.cat([act, text.repeat(60, 1)])
    goals = torch.cat([gap, torch.zeros(720, 6)])
    fitted = output_ridge(rows, goals, torch.cat([weights, torch.full((720,), 1e3)]), 0.0, 99)
    assert torch.isfinite(fitted.norm)
    assert np.linalg.norm(text.numpy() @ matrix_of(fitted)) <= 1e-2 * np.linalg.norm(gap)
    assert relative(act.numpy() @ matrix_of(fitted), gap.numpy()) <= 1e-2


@shapes
def test_failed_factorisation_gives_nan(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that is not positive definite gives NaN, and no error that names no layer."""
    real = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda system: real(-system))
    fitted = output_ridge(*drawn(shape), RHO, 2)
    assert torch.isnan(fitted.norm)
    assert np.isnan(matrix_of(fitted)).all()


def test_rows_without_a_gap_hold_the_update_back() -> None:
    """Kept rows, whose gap is 0, are changed less than without them, and the less the heavier."""
    act, gap, weights = drawn((9, 17, 6))
    kept = drawn((9, 17, 6), seed=1)[0]
    rows, goals = torch.cat([act, kept]), torch.cat([gap, torch.zeros_like(gap)])
    changes = []
    for heavy in (0.0, 1.0, 100.0):
        w = torch.cat([weights, torch.full((9,), heavy)])
        changes.append(
            np.linalg.norm(kept.numpy() @ matrix_of(output_ridge(rows, goals, w, RHO, 99)))
        )
    assert changes[0] > 2 * changes[1] > 4 * changes[2] > 0


def test_no_gap_gives_no_update() -> None:
    """Gaps of 0 give ΔW = 0, whose truncation loses nothing; so do rows of 0."""
    act, gap, weights = drawn((9, 17, 6))
    for rows, goals in ((act, torch.zeros_like(gap)), (torch.zeros_like(act), gap)):
        fitted = output_ridge(rows, goals, weights, RHO, 2)
        assert fitted.kept_energy is not None
        assert float(fitted.kept_energy) == 1.0
        assert not matrix_of(fitted).any()


def test_mean_output_is_the_mean_gap() -> None:
    """The bias is NumPy's mean over rows in float64."""
    _, gap, _ = drawn((40, 11, 6))
    fitted = mean_output(gap)
    assert fitted.update.bias is not None
    assert relative(fitted.update.bias.numpy(), gap.numpy().astype(np.float64).mean(0)) <= EXACT
    assert (fitted.rank, fitted.kept_energy, fitted.update.w_out) == (0, None, None)


def test_random_updates_have_the_norm_and_the_input_but_not_the_action() -> None:
    """The control keeps norm and input factors, acts elsewhere, and depends on its seed alone."""
    act, gap, weights = drawn((9, 17, 6))
    fitted = output_ridge(act, gap, weights, RHO, 3)
    update = fitted.update.w_out
    random, again, other = (randomised(fitted, seed).w_out for seed in (7, 7, 8))
    assert update is not None
    assert random is not None
    assert again is not None
    assert other is not None
    dense = [one.dense().numpy() for one in (update, random)]
    assert torch.equal(random.input, update.input)
    assert np.linalg.norm(dense[1]) == pytest.approx(np.linalg.norm(dense[0]), rel=EXACT)
    assert float(fitted.norm) == pytest.approx(np.linalg.norm(dense[0]), rel=EXACT)
    assert relative(dense[1], dense[0]) > 0.5
    assert torch.equal(again.output, random.output)
    assert not torch.equal(other.output, random.output)


def test_random_biases_have_the_norm_of_the_mean() -> None:
    """The control of `mean_output` is a bias of the same norm in another direction."""
    _, gap, _ = drawn((40, 11, 6))
    fitted = mean_output(gap)
    bias, random = fitted.update.bias, randomised(fitted, 7).bias
    assert bias is not None
    assert random is not None
    assert np.linalg.norm(random) == pytest.approx(np.linalg.norm(bias), rel=EXACT)
    assert float(fitted.norm) == pytest.approx(np.linalg.norm(bias), rel=EXACT)
    assert relative(random.numpy(), bias.numpy()) > 0.5


def test_factors_of_rank_r_act_like_their_dense_matrix() -> None:
    """The factors in float32 act on a row as ΔW does, to rounding."""
    act, gap, weights = drawn((9, 17, 6))
    update = output_ridge(act, gap, weights, RHO, 3).update.w_out
    assert isinstance(update, LowRank)
    acted = update.to(torch.float32).apply(act).numpy()
    assert relative(acted.astype(np.float64), act.numpy() @ update.dense().numpy()) <= 1e-5
