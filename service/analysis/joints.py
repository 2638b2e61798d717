"""Joint updates: one patch of both MLP weights that is exact at several positions at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from service.analysis.factors import Factors, joint_layer_update
from service.analysis.pairs import Pair
from service.engine import Model, Question
from service.theory import LowRank

RANK_TOLERANCE = 1e-6
"""Of the largest singular value: below is the rounding of float32 activations."""


@dataclass(frozen=True)
class JointWeight:
    """One weight's update.

    Args:
        weight: Its name in the checkpoint.
        norm: Frobenius norm.
        singular_values: Largest first; the first is the spectral norm.
        condition: σ_max/σ_min of the rows that it was solved for.
        factors: (m, d_in) and (m, d_out), where asked for; ΔW = inputᵀ·output.
    """

    weight: str
    norm: float
    singular_values: tuple[float, ...]
    condition: float
    factors: Factors | None = None


@dataclass(frozen=True)
class Joint:
    """The patch of one layer.

    Args:
        layer: From 0 up.
        positions: At which it is exact, indices into the query.
        rank: The larger of the two weights', numerically: the positions' number or less.
        condition: The larger of the two weights' conditions.
        weights: The MLP's first and second weight.
    """

    layer: int
    positions: Sequence[int]
    rank: int
    condition: float
    weights: tuple[JointWeight, JointWeight]


def joint_updates(
    model: Model, pair: Pair, layers: Sequence[int], include: Collection[str]
) -> Question[list[Joint]]:
    """The joint patch of each layer for all asked positions, free stream.

    Args:
        model: The resident model.
        pair: The run with context and its baseline; two positions or more.
        layers: From 0 up.
        include: Whether `factors` are given.

    Raises:
        DependentRows: A layer's vectors at the positions are not independent.
    """
    reads = pair.reads(layers, ("mlp_in", "resid_mid", "mlp_act"))
    context, baseline = yield [pair.with_context.run(reads), pair.baseline.run(reads)]
    found = []
    for layer in layers:
        joint = joint_layer_update(layer, context, baseline, model.blocks[layer].w_in.weight)
        weights = (
            _weight(model.family.weight_in.format(layer=layer), joint.w_in, "factors" in include),
            _weight(model.family.weight_out.format(layer=layer), joint.w_out, "factors" in include),
        )
        condition = max(weight.condition for weight in weights)
        rank = max(_rank(weight.singular_values) for weight in weights)
        found.append(Joint(layer, pair.positions, rank, condition, weights))
        yield ()
    return found


def _rank(singular_values: Sequence[float]) -> int:
    """How many are not rounding."""
    return sum(value > RANK_TOLERANCE * singular_values[0] for value in singular_values)


def _weight(name: str, update: LowRank, give_factors: bool) -> JointWeight:
    values = tuple(update.singular_values.tolist())
    factors = Factors(_wire(update.input), _wire(update.output)) if give_factors else None
    return JointWeight(name, float(update.norm), values, update.condition, factors)


def _wire(factor: Tensor) -> Tensor:
    return factor.float().cpu()
