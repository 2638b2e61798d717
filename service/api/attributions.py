"""`POST /v1/attributions`: the contribution of each span of the context."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from schemas.attributions import AttributionsAnswer, AttributionsRequest
from service.analysis.attributions import plan_attributions
from service.api.bodies import reads
from service.api.exchange import Exchange, plain_exchange
from service.api.openapi import answers, operation

router = APIRouter()
SMALL_TEXT = 1 << 10
"""Bytes of a body up to which the event loop plans itself: one run per span takes longer."""


@router.post(
    "/v1/attributions",
    **operation(AttributionsRequest),
    responses=answers(AttributionsAnswer, tensors=False),
)
async def attributions(
    body: Annotated[AttributionsRequest, Depends(reads(AttributionsRequest))],
    ask: Annotated[Exchange, Depends(plain_exchange)],
) -> Response:
    """Attribute ΔW to spans of the context, by default to sentences.

    Each span alone and each span left out, its share of the whole, and the effect of the spans'
    order. Spans interact, so shares need not add up to 1.
    """
    plan = await ask.plan(plan_attributions, body, small=SMALL_TEXT)
    return await ask.answer(await ask.ask(plan))
