"""`POST /v1/tokenize`: the tokens that the model reads for a text."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter

from schemas.common import UNSET, Unset
from schemas.tokenize import PlacedToken, TokenizeAnswer, TokenizedText, TokenizeRequest
from service.analysis.inputs import Text, beginning_of, resolve_ids
from service.api.exchange import Exchange, Resource
from service.api.resources import add
from service.engine import AnswerSize, Model
from service.errors import Path

Resolved = dict[Path, tuple[Text, tuple[int, ...]]]
"""Each text of a request and its ids, by its path in the body."""


def tokenize(ask: Exchange, body: TokenizeRequest) -> TokenizeAnswer:
    """The answer to a body, which needs no forward."""
    ask.check_count(body.prompts or ())
    resolved = resolve_texts(ask.model, body)
    ask.check_size(AnswerSize(tokens=sum(len(ids) for _, ids in resolved.values())))
    return tokenized(ask.model, body, resolved)


def resolve_texts(model: Model, body: TokenizeRequest) -> Resolved:
    """Each text of a body and its ids. `together` is context and query as one text.

    A text that begins a run has the special tokens that the tokenizer adds, as in every resource.
    """
    if body.prompts is not None:
        texts: dict[Path, Text] = {("prompts", i): text for i, text in enumerate(body.prompts)}
    else:
        context, query = body.context or "", body.query or ""
        texts = {("context",): context, ("query",): query}
        if isinstance(context, str) and isinstance(query, str):
            texts["together",] = context + query
    return {at: (text, _resolved(model, text, at)) for at, text in texts.items()}


def _resolved(model: Model, text: Text, at: Path) -> tuple[int, ...]:
    ids = resolve_ids(model, text, at)
    return ids if at == ("query",) else beginning_of(model, text) + ids


def tokenized(model: Model, body: TokenizeRequest, resolved: Resolved) -> TokenizeAnswer:
    """The answer for texts whose ids are known."""
    told = [_tokens(model, text, ids) for text, ids in resolved.values()]
    if body.prompts is not None:
        return TokenizeAnswer(model.summary, prompts=told)
    context, query, *together = told
    if not together:
        return TokenizeAnswer(model.summary, context=context, query=query)
    apart = resolved["context",][1] + resolved["query",][1]
    merges = resolved["together",][1] != apart
    return TokenizeAnswer(model.summary, UNSET, context, query, merges, together[0])


def _tokens(model: Model, text: Text, ids: tuple[int, ...]) -> TokenizedText:
    tokens = model.tokenizer.tokens(ids)
    offsets: Sequence[tuple[int, int] | Unset] = [UNSET] * len(ids)
    if isinstance(text, str):
        own = model.tokenizer.offsets(text)
        offsets = [(0, 0)] * (len(ids) - len(own)) + own
    return TokenizedText(
        [
            PlacedToken(token.id, token.text, token.special, token.bytes, offset)
            for token, offset in zip(tokens, offsets, strict=True)
        ]
    )


router = APIRouter()
add(
    router,
    Resource(
        "/v1/tokenize",
        TokenizeRequest,
        TokenizeAnswer,
        tokenize,
        """Tokenise prompts, or a context and a query.

        Returns ids, texts and offsets, with the special tokens that begin a text, as in every other
        resource. Context and query are tokenised separately. `border_merges` says whether the
        two as one text would have other ids.""",
        prompts=("prompts", "context", "query"),
    ),
)
