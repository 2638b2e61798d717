"""`GET /v1/models`, in the shape of OpenAI's API: the resident model and its adapters."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from schemas.completions import ModelCard, ModelsAnswer
from service.analysis.adapters.made import LoadedAdapter
from service.api.exchange import Exchange, plain_exchange
from service.api.model import PROBLEMS
from service.api.openapi import answers
from service.api.state import State
from service.errors import UnknownAdapter, UnknownModel

router = APIRouter()
OWNER = "deltaw"


@router.get("/v1/models", responses=answers(ModelsAnswer, tensors=False, problems=PROBLEMS))
async def models(ask: Annotated[Exchange, Depends(plain_exchange)]) -> Response:
    """List the resident model and its adapters.

    A completion request may name any of these ids as its `model`.
    """
    loaded, found = ask.model, ask.state.self_check
    created = 0 if found is None else unix_time(found.when)
    resident = ModelCard(loaded.id, "model", created, OWNER, None)
    cards = await asyncio.to_thread(adapter_cards, ask.state)
    return await ask.respond(ModelsAnswer("list", [resident, *cards]))


def adapter_cards(state: State) -> list[ModelCard]:
    """The adapters of the resident weights, the latest first."""
    model = state.engine.model
    return [
        ModelCard(one.id, "model", unix_time(one.created), OWNER, model.id)
        for one in state.adapters.records()
        if one.model.weights_digest == model.weights_digest
    ]


def unix_time(when: str) -> int:
    """Seconds of a time in ISO 8601."""
    return int(datetime.fromisoformat(when).timestamp())


def loaded_adapter(state: State, id: str) -> LoadedAdapter:
    """Load the adapter that `model` of a request names.

    Raises:
        UnknownModel: No adapter has the id.
        OtherWeights: The adapter was made for other weights.
    """
    try:
        return state.adapters.load(state.engine.model, id)
    except UnknownAdapter:
        raise UnknownModel(
            "The id is neither the resident model's nor an adapter's. See `/v1/models`.",
            at=("model",),
        ) from None
