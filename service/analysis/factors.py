"""A layer's update from the activations of two runs, and figures in the form of an answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from schemas.activations import HookPoint
from schemas.pairs import Form
from service.engine import Activations, Block, Site, second_update
from service.theory import (
    ImplicitUpdate,
    OutputUpdate,
    RankOne,
    implicit_update,
    output_update,
)

POINTS: Mapping[Form, tuple[HookPoint, ...]] = {
    "bias": ("mlp_in", "resid_mid"),
    "weights": ("mlp_in", "resid_mid", "mlp_act"),
}
"""The hook points of the run with context from which an update is formed, by form. The baseline run
always needs those of `bias`."""


def columns_of(weight: RankOne, columns: slice) -> RankOne:
    """The update of some columns of W, which has the same input factor."""
    return RankOne(weight.input, weight.output[..., columns])


def layer_update(
    layer: int, context: Activations, baseline: Activations, block: Block, form: Form = "bias"
) -> ImplicitUpdate:
    """ΔW and Δh of a layer at each position that the two runs read.

    Args:
        layer: The layer.
        context: The run with context, which read `POINTS[form]`.
        baseline: The baseline run, which read `POINTS["bias"]`.
        block: The layer's block, in the dtype of the runs.
        form: The carrier of Δh.
    """
    n, h = Site(layer, "mlp_in"), Site(layer, "resid_mid")
    update = implicit_update(baseline[n], context[n], baseline[h], context[h], block.w_in)
    if form == "bias":
        return update
    act = context[Site(layer, "mlp_act")]
    out = second_updates([block], act[None], update.bias[None])
    return replace(update, out=out[0])


def second_updates(blocks: Sequence[Block], act: Tensor, bias: Tensor) -> OutputUpdate:
    """The changes of the second weights of layers that carry Δh.

    Args:
        blocks: The blocks of the layers.
        act: mlp_act with context, (layers, rows, d_mlp).
        bias: Δh, (layers, rows, d_model).
    """
    if blocks[0].post_mlp is None:
        return output_update(act, bias)
    # The input of a post-norm is not a hook point, so it is computed again.
    found = [
        second_update(block, shift, rows, block.w_out(rows))
        for block, rows, shift in zip(blocks, act.unbind(), bias.unbind(), strict=True)
    ]
    gains = [one.gain for one in found if one.gain is not None]
    lifted = [one.lifted for one in found if one.lifted is not None]
    return OutputUpdate(
        RankOne(
            torch.stack([one.weight.input for one in found]),
            torch.stack([one.weight.output for one in found]),
        ),
        torch.stack(gains),
        torch.stack(lifted),
    )


def ratio(part: float, whole: float) -> float | None:
    """part / whole, or None if the whole is zero."""
    return part / whole if whole else None


def finite(value: float) -> float | None:
    """The value, or None if it is infinite or not a number."""
    return value if math.isfinite(value) else None


def ratios(values: Sequence[float]) -> list[float | None]:
    """The values, None for those that are infinite or not a number."""
    return [finite(value) for value in values]
