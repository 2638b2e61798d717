"""A context and a query: the common part of the requests that compare two runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from schemas.common import Answer, Integer, Layers, ModelSummary, Positions, Request, Text, Token

SEED_CONTEXT = (
    "The capital of Malaysia is Kuala Lumpur. The capital of USA is Washington D.C. The capital "
    "of Germany is"
)
SEED_QUERY = " Berlin"

Span = tuple[Integer, Integer]
BaselineName = Literal["matched", "alone", "anchored"]


class WithoutSpans(Request):
    """The baseline that lacks spans of the context; the rest keeps its positions."""

    without: Annotated[
        list[Span],
        Field(description="half-open spans of context tokens, in order, not overlapping"),
    ]


class AnotherContext(Request):
    """The baseline that reads another context before the query."""

    context: Text


def _kind_of_baseline(value: Any) -> str | None:
    if isinstance(value, str):
        return "name"
    if isinstance(value, WithoutSpans) or (isinstance(value, dict) and "without" in value):
        return "without-spans"
    if isinstance(value, AnotherContext | dict):
        return "another-context"
    return None


Baseline = Annotated[
    Annotated[BaselineName, Tag("name")]
    | Annotated[WithoutSpans, Tag("without-spans")]
    | Annotated[AnotherContext, Tag("another-context")],
    Discriminator(
        _kind_of_baseline,
        custom_error_type="baseline",
        custom_error_message="give `matched`, `alone`, `anchored`, {without: spans} or {context: "
        "text}",
    ),
    Field(
        description="what the run with context is compared with. `matched`: the query at its "
        "positions, no context. `alone`: the query from position 0 (mixes content and position). "
        "`anchored`: <|endoftext|> first in both runs. `without`: the context less some spans. "
        "`context`: another context"
    ),
]


class PairRequest(Request):
    """A context, a query, and what the difference is relative to."""

    context: Annotated[Text, Field(description="what is read before the query")]
    query: Annotated[Text, Field(description="tokenised by itself; often begins with a space")]
    baseline: Baseline = "matched"
    stream: Annotated[
        Literal["free", "sequential"],
        Field(
            description="`free`: a layer's baseline is read from the ordinary run, no layer "
            "patched. `sequential`: from the stream that the patched layers below it produce, one "
            "run a position"
        ),
    ] = "free"
    layers: Layers = "all"
    positions: Annotated[Positions, Field(description="indices into the query")] = "last"


class PairTokens(Answer):
    """What was run, as text."""

    context: list[Token]
    query: list[Token]
    border_merges: Annotated[
        bool | None,
        Field(
            description="whether tokenising context and query together would give other ids; "
            "absent where one was given as ids"
        ),
    ] = None


class PairPositions(Answer):
    """Where the query's tokens stand."""

    with_context: list[int]
    baseline: list[int]


class PairAnswer(Answer):
    """What every answer about a context and a query repeats."""

    model: ModelSummary
    baseline: Baseline
    stream: Literal["free", "sequential"]
    tokens: PairTokens
    positions: PairPositions
    position_shift: Annotated[
        int,
        Field(
            description="with context less baseline; where it is not 0, content and position mix"
        ),
    ]
