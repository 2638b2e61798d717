"""Joint updates: one patch of all MLP weights that is exact at several positions at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import Tensor

from schemas.common import UNSET
from schemas.weight_updates import JointUpdate, JointWeight
from service.analysis.factors import joint_layer_update
from service.analysis.pairs import Pair
from service.engine import Model, Question
from service.theory import LowRank

RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest are rounding of float32 activations."""


def joint_updates(
    model: Model, pair: Pair, layers: Sequence[int], include: Collection[str]
) -> Question[Sequence[JointUpdate[Tensor]]]:
    """Form the joint patch of each layer for all requested positions, free stream.

    Args:
        model: The resident model.
        pair: The run with context and its baseline; two positions or more.
        layers: Layers from 0.
        include: Contains `factors` if the factors are wanted.

    Raises:
        DependentRows: A layer's vectors at the positions are not independent.
    """
    reads = pair.reads(layers, ("mlp_in", "resid_mid", "mlp_act"))
    context, baseline = yield [pair.with_context.run(reads), pair.baseline.run(reads)]
    found = []
    for layer in layers:
        joint = joint_layer_update(layer, context, baseline, model.blocks[layer])
        parts = {
            one.name: replace(joint.w_in, output=joint.w_in.output[:, one.columns])
            for one in model.first_weights(layer)
        }
        parts[model.second_weight(layer)] = joint.w_out
        weights = [_weight(name, part, "factors" in include) for name, part in parts.items()]
        condition = max(weight.condition for weight in weights)
        rank = max(_rank(weight.singular_values) for weight in weights)
        found.append(JointUpdate(layer, pair.positions, rank, condition, weights))
        yield ()
    return found


def _rank(singular_values: Sequence[float]) -> int:
    """Number of singular values that are not rounding."""
    return sum(value > RANK_TOLERANCE * singular_values[0] for value in singular_values)


def _weight(name: str, update: LowRank, give_factors: bool) -> JointWeight[Tensor]:
    values = update.singular_values.tolist()
    factors = (_wire(update.input), _wire(update.output)) if give_factors else (UNSET, UNSET)
    return JointWeight(name, float(update.norm), values, update.condition, *factors)


def _wire(factor: Tensor) -> Tensor:
    return factor.float().cpu()
