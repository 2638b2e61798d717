"""One patch for several query positions at once, and one update used on another query.

The formulas are those of docs/theory.md, "Several positions at once". Each capital letter stacks
one row per position, and A⁺ is the pseudo-inverse of A:

    ΔW1 = N⁺ (N_C - N) W1        ΔW2 = Φ_C⁺ (H_C - H)        Φ_C: mlp_act with the context
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .checkpoint import Array
from .checks import relative_error
from .decoder import Patch, Trace
from .questions import Question
from .updates import Update, cosine, update


@dataclass(frozen=True, eq=False)
class Solution:
    """The ΔW of least norm with ``rows @ ΔW = targets``."""

    rows: Array  # (m, in)
    targets: Array  # (m, out); also the factor `output` where `input` is (rows⁺)ᵀ

    @property
    def dense(self) -> Array:
        """The matrix rows⁺ @ targets (in, out)."""
        inverse: Array = np.linalg.pinv(self.rows, rcond=1e-12).astype(np.float64)  # (in, m)
        return inverse @ self.targets

    @property
    def condition(self) -> float:
        """Largest over smallest singular value of the rows."""
        values = np.linalg.svd(self.rows, compute_uv=False)
        return float(values[0] / values[-1])


@dataclass(frozen=True, eq=False)
class Joint:
    """The updates of both weights that are exact at all the positions."""

    w_in: Solution  # N ΔW1 = (N_C - N) W1
    w_out: Solution  # Φ_C ΔW2 = H_C - H

    @property
    def patch(self) -> Patch:
        """Both weights changed, no bias."""
        return Patch(w_in=self.w_in.dense, w_out=self.w_out.dense)


def joint(question: Question, layer: int, positions: Sequence[int], state: Trace) -> Joint:
    """The joint patch of one layer, from the run with context to ``state`` at these positions."""
    chosen = list(positions)
    full = question.full
    delta_n = full[layer, "mlp_in"][chosen] - state[layer, "mlp_in"][chosen]  # (m, d_model)
    delta_h = full[layer, "resid_mid"][chosen] - state[layer, "resid_mid"][chosen]
    return Joint(
        w_in=Solution(state[layer, "mlp_in"][chosen], delta_n @ question.model.blocks[layer].w_in),
        w_out=Solution(full[layer, "mlp_act"][chosen], delta_h),
    )


def sequential_joints(question: Question, positions: Sequence[int]) -> list[Joint]:
    """Patch layer after layer for all the positions at once, with a run for each layer."""
    found: list[Joint] = []
    for layer in range(question.model.n_layers):
        patches = {below: one.patch for below, one in enumerate(found)}
        state = question.patched(patches, layer + 1)
        found.append(joint(question, layer, positions, state))
    return found


@dataclass(frozen=True)
class Reuse:
    """The effect of an update on another query, at mlp_pre."""

    cosine: float  # of the update and the probe's own update
    cosine_of_shift: float  # of n ΔW and the true shift (n_C - n) W1, the probe's n
    relative_error: float
    unpatched_relative_error: float


def reuse(change: Update, probe: Question, layer: int) -> Reuse:
    """``change`` applied to the last token of ``probe``: n (W1 + ΔW) + b1 against n_C W1 + b1."""
    block = probe.model.blocks[layer]
    n = probe.base[layer, "mlp_in"][-1]
    expected = probe.full[layer, "mlp_first"][-1]
    unpatched = probe.base[layer, "mlp_first"][-1]
    actual = n @ (block.w_in + change.dense) + block.first.bias
    return Reuse(
        cosine=cosine(change.dense, update(probe, layer).dense),
        cosine_of_shift=cosine(n @ change.dense, expected - unpatched),
        relative_error=relative_error(actual, expected),
        unpatched_relative_error=relative_error(unpatched, expected),
    )
