"""`POST /v1/tokenize`: what the model is given for a text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from schemas.tokenize import TokenizeAnswer, TokenizeRequest
from service.analysis.inputs import Text, resolve_ids
from service.api.bodies import reads
from service.api.exchange import Exchange, plain_exchange
from service.api.openapi import answers, operation
from service.engine import Model
from service.errors import Path

router = APIRouter()


@router.post(
    "/v1/tokenize",
    **operation(TokenizeRequest),
    responses=answers(TokenizeAnswer, tensors=False),
)
async def tokenize(
    body: Annotated[TokenizeRequest, Depends(reads(TokenizeRequest))],
    ask: Annotated[Exchange, Depends(plain_exchange)],
) -> Response:
    """Tokenise prompts, or a context and a query.

    Ids, texts and offsets. Context and query are tokenised apart, as every other resource does it;
    `border_merges` says whether the two as one text would give other ids.
    """
    ask.count_prompts(body.prompts or ())
    resolved = await ask.tokenized(resolve_texts, ask.model, body)
    ask.expect(1, sum(len(ids) for _, ids in resolved.values()))
    return await ask.answer(await ask.tokenized(tokenized, ask.model, body, resolved))


def resolve_texts(model: Model, body: TokenizeRequest) -> dict[Path, tuple[Text, tuple[int, ...]]]:
    """Every text of a body and its ids, by its place; `together` is context and query as one."""
    if body.prompts is not None:
        texts: dict[Path, Text] = {("prompts", i): text for i, text in enumerate(body.prompts)}
    else:
        context, query = body.context or "", body.query or ""
        texts = {("context",): context, ("query",): query}
        if isinstance(context, str) and isinstance(query, str):
            texts["together",] = context + query
    return {at: (text, resolve_ids(model, text, at)) for at, text in texts.items()}


def tokenized(
    model: Model, body: TokenizeRequest, resolved: dict[Path, tuple[Text, tuple[int, ...]]]
) -> dict[str, Any]:
    """The answer's content."""
    told = [_tokens(model, text, ids) for text, ids in resolved.values()]
    if body.prompts is not None:
        return {"prompts": told}
    content: dict[str, Any] = {str(at[0]): part for at, part in zip(resolved, told, strict=True)}
    if (joined := resolved.get(("together",))) is not None:
        apart = resolved["context",][1] + resolved["query",][1]
        content["border_merges"] = joined[1] != apart
    return content


def _tokens(model: Model, text: Text, ids: tuple[int, ...]) -> dict[str, Any]:
    tokens = [
        {name: value for name, value in asdict(token).items() if value is not None}
        for token in model.tokenizer.tokens(ids)
    ]
    if isinstance(text, str):
        for token, offset in zip(tokens, model.tokenizer.offsets(text), strict=True):
            token["offset"] = offset
    return {"tokens": tokens}
