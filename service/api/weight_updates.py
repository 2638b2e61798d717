"""`POST /v1/weight-updates`: what a context does to each layer, as norms and factors."""

from __future__ import annotations

from typing import Annotated

import torch
from fastapi import APIRouter, Depends, Response

from schemas.weight_updates import Include, WeightUpdatesAnswer, WeightUpdatesRequest
from service.analysis.choices import resolve_layers
from service.analysis.updates import weight_updates
from service.api.asking import Asking, asking
from service.api.bodies import reads
from service.api.operations import answers, operation
from service.api.pairs import repeated, resolved_pair
from service.api.tensors import check_size
from service.engine import Model
from service.errors import NotSupported

router = APIRouter()


@router.post(
    "/v1/weight-updates", **operation(WeightUpdatesRequest), responses=answers(WeightUpdatesAnswer)
)
async def updates(
    body: Annotated[WeightUpdatesRequest, Depends(reads(WeightUpdatesRequest))],
    ask: Annotated[Asking, Depends(asking)],
) -> Response:
    """Summarise the implicit weight updates.

    For each layer and query position the rank-1 update ΔW of the MLP's first weight, and Δh of the
    block's output, that make the baseline run read as the run with context does: norms, cosines and
    factors.
    """
    if "split" in body.include:
        raise NotSupported("`split` is not served yet", at=("include",))
    layers = resolve_layers(ask.model, body.layers)
    pair = await resolved_pair(ask, body)
    entries = len(layers) * len(pair.positions)
    check_size(
        {torch.float32: entries * numbers(ask.model, body.include)},
        entries + len(pair.context) + len(pair.query) + len(pair.positions),
        ask.media,
        body.encoding,
        ask.state.settings.max_response_bytes,
    )
    question = weight_updates(ask.model, pair, layers, frozenset(body.include))
    found = await ask.ask(question, pair.rows)
    content = {**repeated(ask, body, pair), "updates": found.updates}
    if found.next_tokens is not None:
        content["next_tokens"] = found.next_tokens
    return await ask.answer(content, body.encoding)


def numbers(model: Model, include: list[Include]) -> int:
    """How many numbers the tensors of one entry hold."""
    factors = model.d_model + model.d_mlp if "factors" in include else 0
    return factors + (model.d_model if "bias" in include else 0)
