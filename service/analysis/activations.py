"""Capture: the activations of prompts, as they are or reduced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from service.engine import HookPoint, Model, Question, Run, Site, Token
from service.theory import norm

Reduce = Literal["none", "norm", "mean"]
REDUCTIONS: Mapping[Reduce, Callable[[Tensor], Tensor]] = {
    "none": Tensor.cpu,
    "norm": lambda values: norm(values).cpu(),
    "mean": lambda values: values.double().mean(0).cpu(),
}
"""What is kept of (positions, width), as it is read."""


@dataclass(frozen=True)
class Activation:
    """One hook point of one layer in one prompt.

    Args:
        layer: From 0 up.
        hook_point: Which of the block's vectors.
        positions: Indices into the prompt.
        values: (positions, width); reduced by `norm` (positions), by `mean` (width), both in
            float64.
    """

    layer: int
    hook_point: HookPoint
    positions: tuple[int, ...]
    values: Tensor


@dataclass(frozen=True)
class PromptActivations:
    """One prompt's tokens and what was read of them."""

    tokens: tuple[Token, ...]
    activations: tuple[Activation, ...]


def capture(
    model: Model,
    prompts: Sequence[tuple[int, ...]],
    positions: Sequence[tuple[int, ...]],
    layers: Sequence[int],
    hook_points: Sequence[HookPoint],
    reduce: Reduce,
) -> Question[tuple[PromptActivations, ...]]:
    """Read every hook point of every layer at each prompt's positions.

    Args:
        model: The resident model.
        prompts: Ids of each prompt.
        positions: The rows to read of each prompt.
        layers: From 0 up.
        hook_points: In the order of the answer.
        reduce: How a site's rows are reduced.
    """
    sites = [Site(layer, point) for layer in layers for point in hook_points]
    everything = yield [
        Run(ids, range(len(ids)), dict.fromkeys(sites, rows), reduce=REDUCTIONS[reduce])
        for ids, rows in zip(prompts, positions, strict=True)
    ]
    return tuple(
        PromptActivations(
            tokens=model.tokenizer.tokens(ids),
            activations=tuple(
                Activation(site.layer, site.point, rows, read[site]) for site in sites
            ),
        )
        for ids, rows, read in zip(prompts, positions, everything, strict=True)
    )
