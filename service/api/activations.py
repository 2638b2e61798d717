"""`POST /v1/activations`: capture activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, get_args

from fastapi import APIRouter, Depends, Response

from schemas.activations import ActivationsAnswer, ActivationsRequest, HookPoint
from service.analysis.activations import capture
from service.analysis.inputs import resolve_layers, resolve_positions, resolve_prompt
from service.api.bodies import reads
from service.api.exchange import Exchange, exchange
from service.api.openapi import answers, operation
from service.api.problems import ProblemError, pointer
from service.engine import Model

router = APIRouter()
Prompts = tuple[list[tuple[int, ...]], list[tuple[int, ...]]]


@router.post(
    "/v1/activations", **operation(ActivationsRequest), responses=answers(ActivationsAnswer)
)
async def activations(
    body: Annotated[ActivationsRequest, Depends(reads(ActivationsRequest))],
    ask: Annotated[Exchange, Depends(exchange)],
) -> Response:
    """Capture activations.

    The vectors of the chosen hook points, layers and positions of one or several prompts, each run
    by itself.
    """
    ask.count_prompts(body.prompts)
    points = hook_points(body.hook_points)
    layers = resolve_layers(ask.model, body.layers)
    prompts, positions = await ask.tokenized(resolved_prompts, ask.model, body)
    rows = sum(len(chosen) for chosen in positions)
    # What is reduced is float64: as many bytes as two numbers.
    vectors = {"none": rows, "norm": 0, "mean": 2 * len(prompts)}[body.reduce]
    norms = 2 * rows * len(points) if body.reduce == "norm" else 0
    numbers = sum(width(ask.model, point) for point in points) * vectors + norms
    ask.expect(
        len(prompts) * len(layers) * len(points),
        sum(map(len, prompts)),
        numbers * len(layers),
        body.encoding,
        entry_bytes=256 + 8 * max(map(len, positions)),
    )
    question = capture(ask.model, prompts, positions, layers, points, body.reduce)
    captured = await ask.ask(question, sum(map(len, prompts)), layers)
    return await ask.answer({"prompts": captured})


def hook_points(names: Sequence[str]) -> tuple[HookPoint, ...]:
    """The names as hook points.

    Raises:
        ProblemError: `unknown_hook_point`.
    """
    known: dict[str, HookPoint] = {point: point for point in get_args(HookPoint)}
    for i, name in enumerate(names):
        if name not in known:
            detail = f"hook points are {', '.join(known)}"
            raise ProblemError(
                "unknown_hook_point", detail, mistakes=[(pointer(("hook_points", i)), detail)]
            )
    return tuple(dict.fromkeys(known[name] for name in names))


def resolved_prompts(model: Model, body: ActivationsRequest) -> Prompts:
    """The ids of each prompt, and the rows of it that are read."""
    prompts = [
        resolve_prompt(model, prompt, ("prompts", i)) for i, prompt in enumerate(body.prompts)
    ]
    return prompts, [resolve_positions(body.positions, len(ids)) for ids in prompts]


def width(model: Model, point: HookPoint) -> int:
    """How long a hook point's vectors are."""
    return model.d_mlp if point in ("mlp_pre", "mlp_act") else model.d_model
