"""`POST /v1/tokenize`."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from schemas.common import Answer, ModelSummary, Request, Text
from schemas.pairs import SEED_CONTEXT, SEED_QUERY


class TokenizeRequest(Request):
    """Either prompts, or a context and a query."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompts": ["The capital of Germany is Berlin"]},
                {"context": SEED_CONTEXT, "query": SEED_QUERY},
            ]
        }
    )

    prompts: Annotated[
        list[Text] | None, Field(min_length=1, description="each is tokenised by itself")
    ] = None
    context: Annotated[Text | None, Field(description="what is read before the query")] = None
    query: Annotated[Text | None, Field(description="tokenised apart from the context")] = None

    @model_validator(mode="after")
    def _one_form(self) -> TokenizeRequest:
        pair = self.context is not None and self.query is not None
        half = self.context is not None or self.query is not None
        if (self.prompts is None) != pair or (self.prompts is not None and half):
            raise ValueError("give `prompts`, or `context` and `query`")
        return self


class PlacedToken(Answer):
    """One token and where it is in its text."""

    id: int
    text: Annotated[str, Field(description="what it spells; � stands for part of a character")]
    offset: Annotated[
        tuple[int, int] | None,
        Field(description="the characters it covers, half-open; absent where ids were given"),
    ] = None
    special: bool | None = None
    bytes: str | None = None


class TokenizedText(Answer):
    """The tokens of one text."""

    tokens: list[PlacedToken]


class TokenizeAnswer(Answer):
    """Of `prompts`: `prompts`. Of a context and a query: the other four."""

    model: ModelSummary
    prompts: list[TokenizedText] | None = None
    context: TokenizedText | None = None
    query: TokenizedText | None = None
    border_merges: Annotated[
        bool | None,
        Field(description="whether context and query, tokenised together, give other ids"),
    ] = None
    together: Annotated[
        TokenizedText | None, Field(description="the tokens of context + query as one text")
    ] = None
