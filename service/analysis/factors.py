"""A layer's update from the activations of two runs, and figures in the form of an answer."""

from __future__ import annotations

import math

from torch import Tensor

from schemas.weight_updates import Factors
from service.engine import Activations, Site
from service.theory import ImplicitUpdate, JointUpdate, RankOne, implicit_update, joint_update


def factors(weight: RankOne) -> Factors[Tensor]:
    """The factors of one update, on the CPU, in the dtype of the output factor."""
    dtype = weight.output.dtype
    return Factors(weight.input.to(dtype).cpu(), weight.output.cpu())


def layer_update(
    layer: int, context: Activations, baseline: Activations, w_in: Tensor
) -> ImplicitUpdate:
    """ΔW and Δh of a layer at each position that the two runs read."""
    n, h = Site(layer, "mlp_in"), Site(layer, "resid_mid")
    return implicit_update(baseline[n], context[n], baseline[h], context[h], w_in)


def joint_layer_update(
    layer: int, context: Activations, baseline: Activations, w_in: Tensor
) -> JointUpdate:
    """The one patch of a layer for all positions that the two runs read, mlp_act included."""
    n, h, act = Site(layer, "mlp_in"), Site(layer, "resid_mid"), Site(layer, "mlp_act")
    return joint_update(baseline[n], context[n], baseline[h], context[h], context[act], w_in)


def ratio(part: float, whole: float) -> float | None:
    """part / whole, or None if the whole is zero."""
    return part / whole if whole else None


def finite(value: float) -> float | None:
    """The value, or None if it is infinite or not a number."""
    return value if math.isfinite(value) else None


def ratios(values: Tensor) -> list[float | None]:
    """Values of (count), None for those that are infinite or not a number."""
    return [finite(value) for value in values.tolist()]
