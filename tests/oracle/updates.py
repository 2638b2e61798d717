"""The update of one layer at one query position, with the dense matrix.

The formulas are those of docs/theory.md, "One block"; W1 is the MLP's first weight:

Δn = n_C - n     Δh = h_C - h     ΔW1 = nᵀ(Δn W1) / |n|²     n (W1 + ΔW1) = n_C W1

Δh is a bias at the block's output, or the second weight W2 carries it (docs/theory.md, "Weights
that carry the bias").
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Array
from .decoder import Block, Patch, Trace
from .questions import Question

Form = Literal["bias", "weights"]

LARGEST = 8.0
"""What |m* / gain| may be after a norm before the gain is raised instead."""


@dataclass(frozen=True, eq=False)
class Carrier:
    """The change of W2, and of the gain of a norm after it, that puts Δh into the weights."""

    input_factor: Array  # (d_mlp): φ_C / |φ_C|²
    output_factor: Array  # (d_model)
    gain: Array | None  # (d_model), in place of the block's; None without such a norm
    lifted: NDArray[np.bool_] | None  # (d_model), whether the gain of a coordinate was raised

    @property
    def dense(self) -> Array:
        """ΔW2 (d_mlp, d_model)."""
        return np.outer(self.input_factor, self.output_factor)


@dataclass(frozen=True, eq=False)
class Update:
    """ΔW and Δh that turn one baseline row into the row with the context."""

    block: Block  # the block to whose W1 the update belongs
    n_with: Array  # (d_model): n_C, mlp_in with the context
    n: Array  # (d_model): mlp_in of the baseline
    h_with: Array  # (d_model): h_C, resid_mid with the context
    h: Array  # (d_model): resid_mid of the baseline
    act_with: Array  # (d_mlp): φ_C, mlp_act with the context
    second_with: Array  # (d_model): y_C, the output of W2 with the context
    out_with: Array  # (d_model): m_C, mlp_out with the context

    @property
    def delta_n(self) -> Array:
        """n_C - n (d_model), from which the weight update is formed."""
        return self.n_with - self.n

    @property
    def delta_h(self) -> Array:
        """h_C - h (d_model), the bias at the block's output."""
        return self.h_with - self.h

    @property
    def input_factor(self) -> Array:
        """n / |n|² (d_model)."""
        return self.n / (self.n @ self.n)

    @property
    def output_factor(self) -> Array:
        """Δn W1 (d_mlp)."""
        return self.delta_n @ self.block.w_in

    @property
    def dense(self) -> Array:
        """ΔW1 (d_model, d_mlp) in the stored orientation."""
        return np.outer(self.n, self.delta_n @ self.block.w_in) / (self.n @ self.n)

    @property
    def patch(self) -> Patch:
        """The exact patch: ΔW1 on the first weight and Δh on the block's output."""
        return Patch(w_in=self.dense, output_bias=self.delta_h)

    @property
    def carrier(self) -> Carrier:
        """The second weight that carries Δh.

        Without a norm after the MLP, ΔW2 = φ_Cᵀ Δh / |φ_C|². With one, of gain g, its output has
        to be m* = m_C + Δh. Put t = m*/g; where |t_j| > 8 or g_j = 0, t_j is 8 in size instead,
        and g_j := m*_j / t_j. Then, with y' = t rms(y_C) / rms(t),

            ΔW2 = φ_Cᵀ (y' - y_C) / |φ_C|²      gain = g rms(t) sqrt(rms(y_C)² + ε) / rms(y_C)
        """
        factor = self.act_with / (self.act_with @ self.act_with)
        if self.block.post_mlp is None:
            return Carrier(factor, self.delta_h, None, None)
        wanted = self.out_with + self.delta_h  # m*
        gain = self.block.post_mlp.gain.copy()
        t = np.divide(wanted, gain, out=np.full_like(wanted, np.inf), where=gain != 0)
        lifted = np.abs(t) > LARGEST
        sign = np.where(gain < 0, -1.0, 1.0)
        t[lifted] = (LARGEST * np.sign(wanted) * sign)[lifted]
        raised = lifted & (t != 0)
        gain[raised] = wanted[raised] / t[raised]
        rms = math.sqrt((self.second_with**2).mean())
        rms_t = math.sqrt((t**2).mean())
        moved = t * (rms / rms_t)  # y'
        scale = rms_t * math.sqrt(rms**2 + self.block.post_mlp.epsilon) / rms
        return Carrier(factor, moved - self.second_with, scale * gain, lifted)

    def patch_in(self, form: Form) -> Patch:
        """The exact patch: ΔW1, and Δh as a bias or in the second weight."""
        if form == "bias":
            return self.patch
        carrier = self.carrier
        return Patch(w_in=self.dense, w_out=carrier.dense, gain=carrier.gain)

    @property
    def norm(self) -> float:
        """Frobenius norm of the dense ΔW1."""
        return norm(self.dense)

    @property
    def relative_norm(self) -> float:
        """|ΔW1|_F / |W1|_F."""
        return self.norm / self.block.frobenius_norm

    @property
    def spectral_share(self) -> float:
        """|ΔW1|_2 / |W1|_2. |W1|_2 is by SVD; ΔW1 has rank one, so its |.|_2 equals its |.|_F."""
        return self.norm / self.block.spectral_norm

    def singular_values(self) -> Array:
        """Singular values of the dense ΔW1 (d_model), by SVD: one, then zeros."""
        values: Array = np.linalg.svd(self.dense, compute_uv=False).astype(np.float64)
        return values

    @property
    def mlp_in(self) -> "Difference":
        """Comparison of n with and without the context."""
        return difference(self.n_with, self.n)

    @property
    def resid_mid(self) -> "Difference":
        """Comparison of h with and without the context."""
        return difference(self.h_with, self.h)

    def below_noise(self, epsilon: float) -> bool:
        """Whether |Δn| < 64 ε |n|, with the machine epsilon of the run's dtype."""
        return norm(self.delta_n) < 64 * epsilon * norm(self.n)

    @property
    def cancellation(self) -> float:
        """(|n_C| + |n|) / |Δn|: the factor by which rounding errors in n grow in Δn."""
        return cancellation(self.n_with, self.n)


@dataclass(frozen=True)
class Difference:
    """The comparison of two vectors, as the answers report it."""

    norm_with_context: float
    norm_baseline: float
    norm_difference: float
    cosine: float


@dataclass(frozen=True, eq=False)
class Part:
    """One part of an update that is split on a common base, dense (d_model, d_mlp)."""

    dense: Array
    output_factor: Array  # (d_mlp); the input factor is the total's

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return norm(self.dense)


def update(question: Question, layer: int, position: int = -1) -> Update:
    """Form the update in the free stream, from two runs without a patch."""
    return between(question, layer, position, question.full, question.base)


def between(
    question: Question, layer: int, position: int, with_context: Trace, baseline: Trace
) -> Update:
    """Form the update from a row of any two traces of the query."""
    return Update(
        block=question.model.blocks[layer],
        n_with=with_context[layer, "mlp_in"][position],
        n=baseline[layer, "mlp_in"][position],
        h_with=with_context[layer, "resid_mid"][position],
        h=baseline[layer, "resid_mid"][position],
        act_with=with_context[layer, "mlp_act"][position],
        second_with=with_context[layer, "mlp_second"][position],
        out_with=with_context[layer, "mlp_out"][position],
    )


def on_base(n: Array, n_from: Array, n_to: Array, weight: Array) -> Array:
    """nᵀ((n_to - n_from) W) / |n|², dense (d_model, d_mlp), on the base n."""
    return np.outer(n, (n_to - n_from) @ weight) / (n @ n)


def split(question: Question, layer: int, position: int = -1) -> dict[str, Part]:
    """The parts ``content`` and ``position`` of an ``alone`` update (docs/theory.md, "Baselines").

    ΔW_content  = nᵀ((n_C - n_matched) W1) / |n|²      n: the query alone at 0, 1, …
    ΔW_position = nᵀ((n_matched - n)   W1) / |n|²
    """
    if question.baseline != "alone":
        raise ValueError("only the baseline alone is split")
    weight = question.model.blocks[layer].w_in
    n = question.base[layer, "mlp_in"][position]
    n_matched = question.trace(question.keeping(()))[layer, "mlp_in"][position]
    n_with = question.full[layer, "mlp_in"][position]
    return {
        "content": Part(on_base(n, n_matched, n_with, weight), (n_with - n_matched) @ weight),
        "position": Part(on_base(n, n, n_matched, weight), (n_matched - n) @ weight),
    }


def norm(values: Array) -> float:
    """Square root of the sum of squares: Frobenius for a matrix."""
    return float(np.sqrt((values**2).sum()))


def cosine(one: Array, other: Array) -> float:
    """<a, b> / (|a| |b|) of vectors or matrices; NaN where either is zero."""
    return ratio(float((one * other).sum()), norm(one) * norm(other))


def ratio(part: float, whole: float) -> float:
    """part / whole; NaN where ``whole`` is zero (an answer reports null there)."""
    return part / whole if whole else math.nan


def difference(with_context: Array, baseline: Array) -> Difference:
    """Norms of the two vectors and of their difference, and their cosine."""
    return Difference(
        norm_with_context=norm(with_context),
        norm_baseline=norm(baseline),
        norm_difference=norm(with_context - baseline),
        cosine=cosine(with_context, baseline),
    )


def cancellation(one: Array, other: Array) -> float:
    """(|a| + |b|) / |a - b|, infinite where a = b (docs/theory.md, "Numbers")."""
    distance = norm(one - other)
    return (norm(one) + norm(other)) / distance if distance else math.inf
