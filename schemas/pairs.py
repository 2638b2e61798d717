"""A context and a query: the common part of the requests that compare two runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from schemas.common import (
    UNSET,
    Answer,
    Asked,
    Integer,
    Layers,
    ModelSummary,
    Positions,
    Request,
    Text,
    Token,
)

SEED_CONTEXT = (
    "The capital of Malaysia is Kuala Lumpur. The capital of USA is Washington D.C. The capital "
    "of Germany is"
)
SEED_QUERY = " Berlin"
SEED = {"context": SEED_CONTEXT, "query": SEED_QUERY}

Span = tuple[Integer, Integer]
"""Token indices [start, end) of a part of the context."""
BaselineName = Literal["matched", "alone", "anchored"]
Stream = Literal["free", "sequential"]
Form = Literal["bias", "weights"]
"""The carrier of Δh: a bias at the block's output, or the MLP's second weight."""
QueryIndex = Annotated[int, Field(description="Index into the query.")]


class WithoutSpans(Request):
    """The baseline that lacks spans of the context. The other tokens keep their positions."""

    without: list[Span]
    """Half-open spans of context tokens, in ascending order, without overlap."""


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
]
MEANINGS = (
    "`matched`: the query at its positions, without context. `alone`: the query from position 0, "
    "which mixes content and position. `anchored`: the model's anchor token first in both runs. "
    "`without`: the context without some spans. `context`: another context."
)


class PairRequest(Request):
    """A context, a query, and the baseline that their difference is relative to."""

    context: Text
    """Text before the query."""
    query: Text
    """Tokenised separately from the context. It often begins with a space."""
    baseline: Annotated[
        Baseline | None,
        Field(
            description="The run that the run with context is compared with. Null, the default, "
            "selects the default of the model's family: `matched` where positions are absolute, as "
            f"in GPT-2, else `anchored` if the tokenizer has an anchor. {MEANINGS}"
        ),
    ] = None
    stream: Stream = "free"
    """`free`: each layer's baseline is read from the ordinary run, in which no layer is patched.
    `sequential`: it is read from the stream that the patched layers below it produce (arXiv
    2511.17864), with one run per position."""
    layers: Layers = "all"
    positions: Annotated[Positions, Field(description="Token indices into the query.")] = "last"


@dataclass(frozen=True)
class PairTokens(Answer):
    """The tokens that were run."""

    context: Sequence[Token]
    query: Sequence[Token]
    border_merges: Asked[bool] = UNSET
    """Whether tokenising context and query together would give other ids. Absent if one was given
    as ids."""


@dataclass(frozen=True)
class PairPositions(Answer):
    """Positions of the query's tokens in each run."""

    with_context: Sequence[int]
    baseline: Sequence[int]


@dataclass(frozen=True)
class PairAnswer(Answer):
    """The part that every answer about a context and a query repeats."""

    model: ModelSummary
    baseline: Annotated[
        Baseline,
        Field(description=f"The run that the run with context is compared with. {MEANINGS}"),
    ]
    stream: Stream
    tokens: PairTokens
    positions: PairPositions
    position_shift: Annotated[
        int,
        Field(
            description="Position of the query with context minus its position in the baseline. If "
            "it is not 0, the difference mixes content and position."
        ),
    ]
