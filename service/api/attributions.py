"""`POST /v1/attributions`: what each span of the context contributes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from schemas.attributions import AttributionsAnswer, AttributionsRequest
from service.analysis.attributions import attribution_rows, attributions
from service.analysis.inputs import resolve_layers
from service.analysis.spans import given_spans, sentence_spans
from service.api.bodies import reads
from service.api.exchange import Exchange, plain_exchange
from service.api.openapi import answers, operation
from service.api.pairs import only_here, repeated, resolved_pair

router = APIRouter()


@router.post(
    "/v1/attributions",
    **operation(AttributionsRequest),
    responses=answers(AttributionsAnswer, tensors=False),
)
async def shares(
    body: Annotated[AttributionsRequest, Depends(reads(AttributionsRequest))],
    ask: Annotated[Exchange, Depends(plain_exchange)],
) -> Response:
    """Attribute ΔW to spans of the context, sentences by default.

    Each span by itself and by its absence, its share of the whole, and how much the order of the
    spans matters. Spans interact, so shares need not add up to 1.
    """
    only_here(body)
    layers = resolve_layers(ask.model, body.layers)
    pair = await resolved_pair(ask, body)
    spans = (
        sentence_spans(ask.model, pair)
        if body.spans is None
        else given_spans(pair, body.spans, cover=False)
    )
    ask.expect(
        len(layers) * len(pair.positions) * (1 + len(spans)),
        len(pair.context) + len(pair.query),
        entry_bytes=256,
    )
    question = attributions(ask.model, pair, layers, spans)
    found = await ask.ask(question, attribution_rows(pair, spans), layers)
    return await ask.answer(repeated(ask, body, pair, "free") | {"layers": found})
