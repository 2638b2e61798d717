"""`POST /v1/tokenize`: what the model is given for a text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from schemas.tokenize import TokenizeAnswer, TokenizeRequest
from service.analysis.choices import Text, resolve_ids
from service.api.asking import Asking, asking_plainly
from service.api.bodies import reads
from service.api.operations import answers, operation
from service.engine import Model
from service.errors import Path, TooManyItems

router = APIRouter()


@router.post(
    "/v1/tokenize",
    **operation(TokenizeRequest),
    responses=answers(TokenizeAnswer, tensors=False),
)
async def tokenize(
    body: Annotated[TokenizeRequest, Depends(reads(TokenizeRequest))],
    ask: Annotated[Asking, Depends(asking_plainly)],
) -> Response:
    """Tokenise prompts, or a context and a query.

    Ids, texts and offsets. Context and query are tokenised apart, as every other resource does it;
    `border_merges` says whether the two as one text would give other ids.
    """
    limit = ask.state.settings.max_prompts
    if body.prompts is not None and len(body.prompts) > limit:
        raise TooManyItems(
            "the request brings too many prompts",
            at=("prompts",),
            limit=limit,
            actual=len(body.prompts),
        )
    return await ask.answer(await ask.off_loop("tokenize", tokenized, ask.model, body))


def tokenized(model: Model, body: TokenizeRequest) -> dict[str, Any]:
    """The answer's content."""
    if body.prompts is not None:
        prompts = [_tokens(model, text, ("prompts", i)) for i, text in enumerate(body.prompts)]
        return {"prompts": prompts}
    context, query = body.context or "", body.query or ""
    content: dict[str, Any] = {
        "context": _tokens(model, context, ("context",)),
        "query": _tokens(model, query, ("query",)),
    }
    if isinstance(context, str) and isinstance(query, str):
        apart = resolve_ids(model, context, ()) + resolve_ids(model, query, ())
        content["border_merges"] = resolve_ids(model, context + query, ()) != apart
        content["together"] = _tokens(model, context + query, ())
    return content


def _tokens(model: Model, text: Text, at: Path) -> dict[str, Any]:
    tokens = [
        {name: value for name, value in asdict(token).items() if value is not None}
        for token in model.tokenizer.tokens(resolve_ids(model, text, at))
    ]
    if isinstance(text, str):
        for token, offset in zip(tokens, model.tokenizer.offsets(text), strict=True):
            token["offset"] = offset
    return {"tokens": tokens}
