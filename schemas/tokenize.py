"""`POST /v1/tokenize`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from schemas.common import UNSET, Answer, Asked, ModelSummary, Request, Text, Token
from schemas.pairs import SEED_CONTEXT, SEED_QUERY


class TokenizeRequest(Request):
    """The prompts to tokenise, or a context and a query."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompts": ["The capital of Germany is Berlin"]},
                {"context": SEED_CONTEXT, "query": SEED_QUERY},
            ]
        }
    )

    prompts: Annotated[
        list[Text] | None, Field(min_length=1, description="Each is tokenised separately.")
    ] = None
    context: Annotated[Text | None, Field(description="Text before the query.")] = None
    query: Annotated[Text | None, Field(description="Tokenised separately from the context.")] = (
        None
    )

    @model_validator(mode="after")
    def _one_form(self) -> TokenizeRequest:
        pair = self.context is not None and self.query is not None
        half = self.context is not None or self.query is not None
        if (self.prompts is None) != pair or (self.prompts is not None and half):
            raise ValueError("Give `prompts`, or `context` and `query`.")
        return self


@dataclass(frozen=True)
class PlacedToken(Token):
    """One token and its place in its text."""

    offset: Annotated[
        Asked[tuple[int, int]],
        Field(
            description="Characters [start, end) that the token covers. Absent for a prompt of ids."
        ),
    ] = UNSET


@dataclass(frozen=True)
class TokenizedText(Answer):
    """The tokens of one text."""

    tokens: Sequence[PlacedToken]


@dataclass(frozen=True)
class TokenizeAnswer(Answer):
    """The tokens of `prompts`, or of a context and a query with what their border does."""

    model: ModelSummary
    prompts: Asked[Sequence[TokenizedText]] = UNSET
    context: Asked[TokenizedText] = UNSET
    query: Asked[TokenizedText] = UNSET
    border_merges: Annotated[
        Asked[bool],
        Field(description="Whether context and query, tokenised together, have other ids."),
    ] = UNSET
    together: Annotated[
        Asked[TokenizedText], Field(description="The tokens of context + query as one text.")
    ] = UNSET
