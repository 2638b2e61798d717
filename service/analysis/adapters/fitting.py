"""The fit, layer by layer: runs of one block each, on the stream that patched blocks produce.

Several lanes pass through the blocks side by side: the adapter that is fitted, and its rivals. In
each block a lane reads mlp_act and resid_post of all its rows, forms its update from some of them,
and adds what the update changes to all of them. So a lane computes no block twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.analysis.pairs import Prompt
from service.analysis.pieces import conditions_of
from service.engine import Begin, Condition, Question, Run, Site, fetch
from service.theory.static_update import StaticUpdate

Rule = Callable[[int, Tensor, Tensor], StaticUpdate]
"""Forms the update of a layer, which acts after mlp_act, from mlp_act (rows, d_mlp) and the
unpatched resid_post (rows, d_model) of all rows of a lane."""


@dataclass(frozen=True, eq=False)
class Lane:
    """Prompts that pass through patched blocks.

    Args:
        prompts: The prompts.
        stream: resid_pre of the first patched layer of their rows, (rows, d_model).
        rule: Forms the update of each layer.
    """

    prompts: Sequence[Prompt]
    stream: Tensor
    rule: Rule


def fit(
    layers: range, lanes: Sequence[Lane], formed: Sequence[Condition] = ()
) -> Question[list[Tensor]]:
    """Patch the blocks of consecutive layers in every lane.

    Args:
        layers: The patched layers.
        lanes: The lanes. In each layer, a rule is asked after those of the lanes before it.
        formed: Conditions that updates exist. The rules append those of their own updates.

    Returns:
        The stream after the last layer of each lane, (rows, d_model).
    """
    streams = [lane.stream for lane in lanes]
    for layer in layers:
        asked = [_runs(lane, layer, stream) for lane, stream in zip(lanes, streams, strict=True)]
        received = yield [run for runs in asked for run in runs]
        # An eigendecomposition of NaN would raise an error that names no layer.
        # The updates' conditions come first, because their NaN would reach the activations.
        fetch((), [*formed, *conditions_of(received)])
        read = iter(received)
        for i, lane in enumerate(lanes):
            own = [next(read) for _ in lane.prompts]
            act, post = (torch.cat([run[site] for run in own]) for site in _sites(layer))
            streams[i] = patched(lane.rule(layer, act, post), act, post)
            yield ()
    fetch((), formed)
    return streams


def patched(update: StaticUpdate, act: Tensor, post: Tensor) -> Tensor:
    """resid_post under an update of the second weight or of the bias, (rows, d_model).

    Args:
        update: The update.
        act: mlp_act, (rows, d_mlp).
        post: resid_post without the update, (rows, d_model).
    """
    own = update.to(post.dtype)
    if own.w_out is not None:
        post = post + own.w_out.apply(act)
    return post if own.bias is None else post + own.bias


def _sites(layer: int) -> tuple[Site, Site]:
    return Site(layer, "mlp_act"), Site(layer, "resid_post")


def _runs(lane: Lane, layer: int, stream: Tensor) -> list[Run]:
    """Runs of one block, which begin with its resid_pre, (rows, d_model)."""
    parts = torch.split(stream, [len(prompt.ids) for prompt in lane.prompts])
    return [
        Run(
            prompt.ids,
            prompt.positions,
            dict.fromkeys(_sites(layer), range(len(prompt.ids))),
            stream.dtype,
            begin=Begin(layer, part),
        )
        for prompt, part in zip(lane.prompts, parts, strict=True)
    ]
