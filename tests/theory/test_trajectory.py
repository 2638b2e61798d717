"""The path of a weight in steps −ηG, compared with dense matrices in float64, without a model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from service.theory import Trajectory, trajectory
from tests.theory.layers import EXACT, Dense

few = settings(derandomize=True, max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
FIGURES = (
    "norm",
    "step_norm",
    "gradient_norm",
    "cosine_to_final",
    "loss_before",
    "loss_after",
)
Array = NDArray[np.float64]


def drawn(seed: int, steps: int, width: int = 11, hidden: int = 17) -> tuple[Tensor, Tensor]:
    """Random readings n_0 to n_k and a weight, float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal(steps + 1, width), normal(width, hidden) / width**0.5


def weights_on_the_way(n: Array, w: Array) -> list[Array]:
    """The dense weights W_i = W + n_0ᵀ((n_i − n_0)W)/‖n_0‖²."""
    return [w + np.outer(n[0], (one - n[0]) @ w) / (n[0] @ n[0]) for one in n]


def gradients(n: Array, w: Array) -> list[Array]:
    """The dense gradients G_i = n_0ᵀ((n_i − n_{i+1})W)."""
    return [np.outer(n[0], (n[i] - n[i + 1]) @ w) for i in range(len(n) - 1)]


def figures(way: list[Array], steps: list[Array], g: list[Array]) -> dict[str, Array]:
    """Every figure of a trajectory, computed from dense matrices only."""
    updates = [one - way[0] for one in way[1:]]
    final = updates[-1]
    columns: dict[str, list[Any]] = {
        "norm": [np.linalg.norm(one) for one in updates],
        "step_norm": [np.linalg.norm(one) for one in steps],
        "gradient_norm": [np.linalg.norm(one) for one in g],
        "cosine_to_final": [
            (one * final).sum() / (np.linalg.norm(one) * np.linalg.norm(final)) for one in updates
        ],
        "loss_before": [np.trace(one.T @ at) for one, at in zip(g, way[:-1], strict=True)],
        "loss_after": [np.trace(one.T @ at) for one, at in zip(g, way[1:], strict=True)],
    }
    return {name: np.asarray(column) for name, column in columns.items()}


def truth(n: Array, w: Array) -> dict[str, Array]:
    """The figures by the formulas of the theory."""
    return taken(weights_on_the_way(n, w), n, w)


def gap(found: Trajectory, expected: dict[str, Array]) -> float:
    """The largest difference of a figure, relative to the largest value of that figure."""
    gaps = []
    for name in FIGURES:
        column: Any = getattr(found, name).numpy()
        gaps.append(abs(column - expected[name]).max() / abs(expected[name]).max())
    return float(max(gaps))


@few
@given(seeds, st.integers(1, 6))
def test_figures_equal_those_of_the_dense_matrices(seed: int, steps: int) -> None:
    """Norms, cosines and losses equal those of the dense W_i and G_i."""
    n, w = drawn(seed, steps)
    assert gap(trajectory(n, Dense(w)), truth(n.numpy(), w.numpy())) <= EXACT


@few
@given(seeds, st.integers(1, 6))
def test_step_is_gradient_descent_on_a_linear_loss(seed: int, steps: int) -> None:
    """W_{i+1} = W_i − ηG_i, G_i is the gradient of the loss, and a step lowers the loss by
    η‖G‖²."""
    n, w = (part.numpy() for part in drawn(seed, steps))
    found = trajectory(torch.from_numpy(n), Dense(torch.from_numpy(w)))
    way, g = weights_on_the_way(n, w), gradients(n, w)
    eta = float(found.eta)
    assert eta == pytest.approx(1 / (n[0] @ n[0]), rel=EXACT)
    for i in range(steps):
        np.testing.assert_allclose(way[i] - eta * g[i], way[i + 1], atol=EXACT * 10)
        drop = float(found.loss_before[i] - found.loss_after[i])
        scale = float(np.linalg.norm(g[i]) * np.linalg.norm(way[i]))
        assert drop == pytest.approx(eta * np.linalg.norm(g[i]) ** 2, abs=EXACT * scale)
        assert float(found.step_norm[i]) == pytest.approx(
            eta * float(found.gradient_norm[i]), rel=EXACT
        )
        np.testing.assert_allclose(n[0] @ way[i + 1], n[i + 1] @ w, atol=EXACT * 10)


@few
@given(seeds, st.integers(1, 6))
def test_steps_sum_to_the_whole_update(seed: int, steps: int) -> None:
    """The steps add up to ΔW of the whole context, whose cosine with itself is 1."""
    n, w = drawn(seed, steps)
    found = trajectory(n, Dense(w))
    assert float(found.telescoping_error) <= EXACT
    assert float(found.cosine_to_final[-1]) == pytest.approx(1.0, abs=EXACT)


def taken(way: list[Array], n: Array, w: Array) -> dict[str, Array]:
    """The figures of the weights `way`, with the steps between them."""
    return figures(way, [b - a for a, b in pairwise(way)], gradients(n, w))


WRONG: dict[str, Callable[[Array, Array], dict[str, Array]]] = {
    "each reading as its own base": lambda n, w: taken(
        [w + np.outer(one, (one - n[0]) @ w) / (one @ one) for one in n], n, w
    ),
    "norm not squared": lambda n, w: taken(
        [w + np.outer(n[0], (one - n[0]) @ w) / np.linalg.norm(n[0]) for one in n], n, w
    ),
    "gradient ascent": lambda n, w: taken([2 * w - one for one in weights_on_the_way(n, w)], n, w),
    "the other sign of G": lambda n, w: truth(n, w) | {"loss_after": -truth(n, w)["loss_after"]},
    "losses at W": lambda n, w: (
        truth(n, w) | {"loss_before": np.array([np.trace(g.T @ w) for g in gradients(n, w)])}
    ),
    "loss before as loss after": lambda n, w: (
        truth(n, w) | {"loss_after": truth(n, w)["loss_before"]}
    ),
    "norms before the step": lambda n, w: (
        truth(n, w) | {"norm": np.array([0.0, *truth(n, w)["norm"][:-1]])}
    ),
    "steps from the base": lambda n, w: truth(n, w) | {"step_norm": truth(n, w)["norm"]},
    "gradients scaled by η": lambda n, w: truth(n, w) | {"gradient_norm": truth(n, w)["step_norm"]},
    "cosines of the readings": lambda n, w: (
        truth(n, w)
        | {
            "cosine_to_final": np.array(
                [
                    (one - n[0])
                    @ (n[-1] - n[0])
                    / (np.linalg.norm(one - n[0]) * np.linalg.norm(n[-1] - n[0]))
                    for one in n[1:]
                ]
            )
        }
    ),
    "ε in η": lambda n, w: truth(n, w) | {"norm": truth(n, w)["norm"] * (1 - 1e-9)},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_formulas_miss_the_bound(name: str) -> None:
    """Each wrong reading of the formulas differs from the service's figures by at least 100
    bounds."""
    n, w = drawn(0, 5)
    assert gap(trajectory(n, Dense(w)), WRONG[name](n.numpy(), w.numpy())) > 100 * EXACT


def test_unchanged_readings_give_zero_norms_and_nan_cosines() -> None:
    """If ΔW is zero, so are all norms, and figures that divide by it are NaN."""
    n, w = drawn(1, 1)
    found = trajectory(n[:1].expand(4, -1), Dense(w))
    for name in ("norm", "step_norm", "gradient_norm", "loss_before", "loss_after"):
        assert torch.equal(getattr(found, name), torch.zeros(3, dtype=torch.float64)), name
    assert bool(found.cosine_to_final.isnan().all())
    assert bool(found.telescoping_error.isnan())
    back = trajectory(torch.stack([n[0], n[1], n[0]]), Dense(w))
    assert float(back.step_norm[0]) == pytest.approx(float(back.norm[0]), rel=EXACT)
    assert float(back.norm[1]) <= 1e-15 * float(back.norm[0])


@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_zero_base_or_non_finite_reading_gives_figures_that_are_not_finite(
    row: int, value: float
) -> None:
    """Where ‖n_0‖ = 0, or a reading is NaN or infinite, η or a norm is not finite, and only in that
    path of a batch; a later n_i = 0 is an ordinary reading."""
    n, w = drawn(2, 3)
    n[row] = value
    if row and value == 0.0:
        assert gap(trajectory(n, Dense(w)), truth(n.numpy(), w.numpy())) <= EXACT
        return
    found = trajectory(torch.stack([drawn(2, 3)[0], n]), Dense(w))
    finite = torch.isfinite(found.eta) & torch.isfinite(found.norm).all(-1)
    assert finite.tolist() == [True, False]


def test_batch_of_paths_equals_single_paths() -> None:
    """Paths of layers and positions in leading dimensions have the figures of each path alone."""
    w = drawn(3, 1)[1]
    paths = [drawn(seed, 4)[0] for seed in range(6)]
    found = trajectory(torch.stack(paths).view(2, 3, 5, -1), Dense(w))
    for i, path in enumerate(paths):
        alone, at = trajectory(path, Dense(w)), divmod(i, 3)
        for name in (*FIGURES, "eta"):
            torch.testing.assert_close(
                getattr(found, name)[at], getattr(alone, name), rtol=1e-12, atol=1e-12
            )
        assert float(found.telescoping_error[at]) <= EXACT
