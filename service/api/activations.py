"""`POST /v1/activations`: capture activations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from schemas.activations import ActivationsAnswer, ActivationsRequest
from service.analysis.activations import plan_activations
from service.api.bodies import reads
from service.api.exchange import Exchange, exchange
from service.api.openapi import answers, operation

router = APIRouter()


@router.post(
    "/v1/activations", **operation(ActivationsRequest), responses=answers(ActivationsAnswer)
)
async def activations(
    body: Annotated[ActivationsRequest, Depends(reads(ActivationsRequest))],
    ask: Annotated[Exchange, Depends(exchange)],
) -> Response:
    """Capture activations.

    The vectors of hook points, layers and positions of one or several prompts, each a run of its
    own.
    """
    ask.check_count(body.prompts)
    return await ask.answer(await ask.ask(await ask.plan(plan_activations, body)))
