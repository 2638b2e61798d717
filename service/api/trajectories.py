"""`POST /v1/trajectories`: the weights' way as the context is read."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from schemas.trajectories import TrajectoriesAnswer, TrajectoriesRequest
from service.analysis.inputs import resolve_layers
from service.analysis.spans import given_spans, token_spans
from service.analysis.trajectories import trajectories, trajectory_rows
from service.api.bodies import reads
from service.api.exchange import Exchange, plain_exchange
from service.api.openapi import answers, operation
from service.api.pairs import only_here, repeated, resolved_pair

router = APIRouter()


@router.post(
    "/v1/trajectories",
    **operation(TrajectoriesRequest),
    responses=answers(TrajectoriesAnswer, tensors=False),
)
async def ways(
    body: Annotated[TrajectoriesRequest, Depends(reads(TrajectoriesRequest))],
    ask: Annotated[Exchange, Depends(plain_exchange)],
) -> Response:
    """Follow ΔW as the context is read, token by token or span by span.

    Each step is one step of gradient descent on a loss that is linear in W, with step size η. That
    form restates a telescoping sum: the steps add up to the ΔW of the whole context.
    """
    only_here(body)
    layers = resolve_layers(ask.model, body.layers)
    pair = await resolved_pair(ask, body)
    spans = token_spans(pair) if body.spans is None else given_spans(pair, body.spans, cover=True)
    ask.expect(
        len(layers) * len(pair.positions) * (1 + len(spans)),
        len(pair.context) + len(pair.query),
        entry_bytes=256,
    )
    question = trajectories(ask.model, pair, layers, spans)
    found = await ask.ask(question, trajectory_rows(pair, spans), layers)
    return await ask.answer(repeated(ask, body, pair, "free") | {"layers": found})
