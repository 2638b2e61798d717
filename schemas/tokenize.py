"""`POST /v1/tokenize`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from schemas.common import UNSET, Answer, Asked, ModelSummary, Request, Text, Token, with_examples
from schemas.pairs import SEED


class TokenizeRequest(Request):
    """The prompts to tokenise, or a context and a query."""

    model_config = with_examples({"prompts": ["The capital of Germany is Berlin"]}, SEED)

    prompts: Annotated[list[Text] | None, Field(min_length=1)] = None
    """Each is tokenised separately."""
    context: Text | None = None
    """Text before the query."""
    query: Text | None = None
    """Tokenised separately from the context."""

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

    offset: Asked[tuple[int, int]] = UNSET
    """Characters [start, end) that the token covers. Absent for a prompt of ids."""


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
    border_merges: Asked[bool] = UNSET
    """Whether context and query, tokenised together, have other ids."""
    together: Asked[TokenizedText] = UNSET
    """The tokens of context + query as one text."""
