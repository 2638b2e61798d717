"""`POST /v1/weight-updates`: the effect of a context on each layer, as norms and factors."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from schemas.weight_updates import (
    JointUpdatesAnswer,
    WeightUpdatesAnswer,
    WeightUpdatesRequest,
)
from service.analysis.weight_updates import plan_weight_updates
from service.api.bodies import reads
from service.api.exchange import Exchange, exchange
from service.api.openapi import answers, operation

router = APIRouter()


@router.post(
    "/v1/weight-updates",
    **operation(WeightUpdatesRequest),
    responses=answers(WeightUpdatesAnswer | JointUpdatesAnswer),
)
async def weight_updates(
    body: Annotated[WeightUpdatesRequest, Depends(reads(WeightUpdatesRequest))],
    ask: Annotated[Exchange, Depends(exchange)],
) -> Response:
    """Summarise the implicit weight updates.

    For each layer and query position: the rank-1 update ΔW of the MLP's first weight, and the shift
    Δh of the block's output, with which the baseline run reads as the run with context does. Norms,
    cosines and factors. With `joint`: one patch of both MLP weights for all positions of a layer.
    """
    ask.check_count(body.probe_queries, "probe_queries")
    return await ask.answer(await ask.ask(await ask.plan(plan_weight_updates, body)))
