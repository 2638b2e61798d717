"""`POST /v1/trajectories`: the weights as the context is read."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from schemas.trajectories import TrajectoriesAnswer, TrajectoriesRequest
from service.analysis.trajectories import plan_trajectories
from service.api.bodies import reads
from service.api.exchange import Exchange, plain_exchange
from service.api.openapi import answers, operation

router = APIRouter()
SMALL_TEXT = 1 << 10
"""Bytes of a body up to which the event loop plans itself: one run per token takes longer."""


@router.post(
    "/v1/trajectories",
    **operation(TrajectoriesRequest),
    responses=answers(TrajectoriesAnswer, tensors=False),
)
async def trajectories(
    body: Annotated[TrajectoriesRequest, Depends(reads(TrajectoriesRequest))],
    ask: Annotated[Exchange, Depends(plain_exchange)],
) -> Response:
    """Follow ΔW as the context is read, token by token or span by span.

    Each step is one step of gradient descent on a loss that is linear in W, with step size η
    (arXiv 2507.16003). That form restates a telescoping sum: the steps add up to the ΔW of the
    whole context.
    """
    plan = await ask.plan(plan_trajectories, body, small=SMALL_TEXT)
    return await ask.answer(await ask.ask(plan))
