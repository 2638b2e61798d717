"""Activations: the vectors of prompts at hook points, unchanged or reduced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from schemas.activations import (
    Activation,
    ActivationsAnswer,
    ActivationsRequest,
    HookPoint,
    PromptActivations,
    Reduce,
)
from service.analysis.inputs import resolve_layers, resolve_positions, resolve_prompt
from service.analysis.pieces import conditions_of
from service.engine import AnswerSize, Model, Plan, Question, Run, Site, fetch, plan
from service.errors import UnknownHookPoint
from service.theory import norm

REDUCTIONS: Mapping[Reduce, Callable[[Tensor], Tensor]] = {
    "none": lambda values: values,
    "norm": norm,
    "mean": lambda values: values.double().mean(0),
}
"""Functions from (positions, width) to the values that are kept as soon as a site is read."""


def plan_activations(model: Model, request: ActivationsRequest) -> Plan[ActivationsAnswer[Tensor]]:
    """Plan the capture of activations. Raises `Refused` if an input does not fit."""
    points = hook_points(model, request.hook_points)
    layers = resolve_layers(model, request.layers)
    prompts = [resolve_prompt(model, p, ("prompts", i)) for i, p in enumerate(request.prompts)]
    positions = [resolve_positions(request.positions, len(ids)) for ids in prompts]
    rows = sum(map(len, positions))
    # Reduced values are float64: as many bytes as two numbers.
    vectors = {"none": rows, "norm": 0, "mean": 2 * len(prompts)}[request.reduce]
    norms = 2 * rows * len(points) if request.reduce == "norm" else 0
    numbers = sum(model.width(point) for point in points) * vectors + norms
    size = AnswerSize(
        entries=len(prompts) * len(layers) * len(points),
        tokens=sum(map(len, prompts)),
        numbers=numbers * len(layers),
        entry_bytes=256 + 8 * max(map(len, positions)),
    )
    return plan(model, activations(model, prompts, positions, layers, points, request.reduce), size)


def hook_points(model: Model, names: Sequence[str]) -> tuple[HookPoint, ...]:
    """The hook points of these names, each once.

    Raises:
        UnknownHookPoint: The model has no hook point of one of the names.
    """
    known: dict[str, HookPoint] = {point: point for point in model.hook_points}
    for i, name in enumerate(names):
        if name not in known:
            raise UnknownHookPoint(f"Hook points are {', '.join(known)}.", at=("hook_points", i))
    return tuple(dict.fromkeys(known[name] for name in names))


def activations(
    model: Model,
    prompts: Sequence[tuple[int, ...]],
    positions: Sequence[tuple[int, ...]],
    layers: Sequence[int],
    points: Sequence[HookPoint],
    reduce: Reduce,
) -> Question[ActivationsAnswer[Tensor]]:
    """Read every hook point of every layer at each prompt's positions.

    Args:
        model: The resident model.
        prompts: Ids of each prompt.
        positions: The rows to read of each prompt.
        layers: Layers from 0.
        points: Hook points in the order of the answer.
        reduce: How a site's rows are reduced.
    """
    sites = [Site(layer, point) for layer in layers for point in points]
    tokens = [model.tokenizer.tokens(ids) for ids in prompts]
    everything = yield [
        Run(ids, range(len(ids)), dict.fromkeys(sites, rows), reduce=REDUCTIONS[reduce])
        for ids, rows in zip(prompts, positions, strict=True)
    ]
    values = iter(
        fetch([read[site] for read in everything for site in sites], conditions_of(everything))
    )
    return ActivationsAnswer(
        model.summary,
        [
            PromptActivations(
                shown,
                [Activation(site.layer, site.point, rows, next(values)) for site in sites],
            )
            for shown, rows in zip(tokens, positions, strict=True)
        ],
    )
