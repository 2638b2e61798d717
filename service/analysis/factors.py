"""A layer's update from what two runs read, and its factors as they leave."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from service.engine import Activations, Site
from service.theory import ImplicitUpdate, JointUpdate, RankOne, implicit_update, joint_update


@dataclass(frozen=True)
class Factors:
    """ΔW = outer(input, output), in the stored orientation.

    Args:
        input: n/‖n‖², (d_model).
        output: Δn·W, (d_mlp).
    """

    input: Tensor
    output: Tensor


def factors(weight: RankOne) -> Factors:
    """The factors of one update, on the CPU, in the dtype of the output factor."""
    dtype = weight.output.dtype
    return Factors(weight.input.to(dtype).cpu(), weight.output.cpu())


def layer_update(
    layer: int, context: Activations, baseline: Activations, w_in: Tensor
) -> ImplicitUpdate:
    """ΔW and Δh of a layer from what two runs read, one for each position."""
    n, h = Site(layer, "mlp_in"), Site(layer, "resid_mid")
    return implicit_update(baseline[n], context[n], baseline[h], context[h], w_in)


def joint_layer_update(
    layer: int, context: Activations, baseline: Activations, w_in: Tensor
) -> JointUpdate:
    """The one patch of a layer for all positions that two runs read; mlp_act is read too."""
    n, h, act = Site(layer, "mlp_in"), Site(layer, "resid_mid"), Site(layer, "mlp_act")
    return joint_update(baseline[n], context[n], baseline[h], context[h], context[act], w_in)
