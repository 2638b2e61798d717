"""A context and a query, and the two runs that are compared.

The run with context reads context and query; the baseline run reads the query with less of it.
`wpe` lives in GPT-2's residual stream, so where the query stands in the baseline decides what the
difference holds:

    matched            no context; the query at its positions      content
    alone              no context; the query from position 0       content, position, first token
    anchored           <|endoftext|> first in both runs            content without the first token
    without spans      the rest of the context, positions kept     what the spans add
    another context    that one, and the query behind it           one context against another

Context and query are tokenised apart, since merges across the border would change the query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from service.analysis.inputs import Text, check_length, resolve_ids, resolve_positions
from service.engine import Activations, Apply, Follow, HookPoint, Model, Run, Site
from service.errors import BadSpan, EmptyContext, EmptyQuery, NoAnchorToken, Path

QUERY: Path = ("query",)
SLICE = 32
"""Positions that are worked on before other questions have their turn."""
Span = tuple[int, int]
Stream = Literal["free", "sequential"]


@dataclass(frozen=True)
class Without:
    """The baseline that lacks spans of the context's tokens, half-open."""

    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Another:
    """The baseline that has another context."""

    context: Text


Baseline = Literal["matched", "alone", "anchored"] | Without | Another


@dataclass(frozen=True)
class Prompt:
    """Tokens at positions that end in the query.

    Args:
        ids: (rows,).
        positions: (rows,).
        query_length: How many of the last rows are the query.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    query_length: int

    def run(
        self,
        reads: Mapping[Site, Sequence[int]],
        dtype: torch.dtype | None = None,
    ) -> Run:
        """The run that reads positions of the query, given as indices into it."""
        first = len(self.ids) - self.query_length
        rows = {site: [first + position for position in wanted] for site, wanted in reads.items()}
        return Run(self.ids, self.positions, rows, dtype)


@dataclass(frozen=True)
class Pair:
    """Two prompts that end in the same query.

    Args:
        context: Ids of the context, with the anchor where there is one.
        query: Ids of the query.
        anchored: Whether the first id of the context is an anchor that both prompts have.
        with_context: The prompt with context.
        baseline: The prompt that it is compared with.
        positions: The query positions that are asked for.
        border_merges: Whether context and query, tokenised together, give other ids; None for ids.
    """

    context: tuple[int, ...]
    query: tuple[int, ...]
    anchored: bool
    with_context: Prompt
    baseline: Prompt
    positions: tuple[int, ...]
    border_merges: bool | None

    @property
    def rows(self) -> int:
        """Rows of both runs together, before any is shared."""
        return len(self.with_context.ids) + len(self.baseline.ids)

    def reads(
        self, layers: Sequence[int], points: Sequence[HookPoint]
    ) -> dict[Site, tuple[int, ...]]:
        """The asked positions at every one of the points of every one of the layers."""
        return {Site(layer, point): self.positions for layer in layers for point in points}

    @property
    def matched(self) -> Prompt:
        """The query where the prompt with context has it, with nothing before it."""
        return self.keeping(())

    def baseline_runs(
        self,
        layers: Sequence[int],
        points: Sequence[HookPoint],
        stream: Stream,
        dtype: torch.dtype | None = None,
        apply: Apply = "factored",
    ) -> list[Run]:
        """The runs of the baseline: one in the free stream, one a position in the sequential.

        Args:
            layers: From 0 up.
            points: What is read at each of them.
            stream: `sequential`: each run follows the run with context at its position.
            dtype: What they are computed in.
            apply: How the sequential stream applies W + ΔW.
        """
        sites = [Site(layer, point) for layer in layers for point in points]
        if stream == "free":
            return [self.baseline.run(dict.fromkeys(sites, self.positions), dtype)]
        source = self.with_context.run(dict.fromkeys(sites, self.positions), dtype)
        ahead = len(self.with_context.ids) - len(self.query)
        behind = len(self.baseline.ids) - len(self.query)
        return [
            replace(
                self.baseline.run(dict.fromkeys(sites, (position,)), dtype),
                patch=Follow(source, ahead + position, behind + position, apply),
            )
            for position in self.positions
        ]

    def keeping(self, kept: Sequence[int]) -> Prompt:
        """The query at its place behind some of the context's tokens, positions kept."""
        length = len(self.query)
        ids = tuple(self.context[i] for i in kept) + self.query
        return Prompt(ids, tuple(kept) + self.with_context.positions[-length:], length)

    def reordered(self, order: Sequence[int]) -> Prompt:
        """The prompt with context, its context read in another order (indices into it)."""
        ids = tuple(self.context[i] for i in order) + self.query
        return Prompt(ids, self.with_context.positions, len(self.query))


def position_slices(count: int) -> list[slice]:
    """Positions in parts that are small enough to be worked on in one go."""
    return [slice(start, start + SLICE) for start in range(0, count, SLICE)]


def gathered(runs: Sequence[Activations]) -> Activations:
    """What several runs read at the same sites, one below the other."""
    if len(runs) == 1:
        return runs[0]
    return {site: torch.cat([run[site] for run in runs]) for site in runs[0]}


def resolve_pair(
    model: Model,
    context: Text,
    query: Text,
    baseline: Baseline,
    positions: Literal["last", "all"] | Sequence[int],
    *,
    query_at: Path = QUERY,
) -> Pair:
    """Lay a context and a query out as two prompts.

    Args:
        model: Whose tokenizer, vocabulary and positions.
        context: What is read before the query.
        query: What is looked at.
        baseline: What the run with context is compared with.
        positions: Indices into the query.
        query_at: Where the caller gave the query.

    Raises:
        EmptyContext: The context, or the other one, has no tokens.
        EmptyQuery: The query has none.
        PromptTooLong: Together they need more positions than the model has.
        TokenOutOfRange: An id is not in the vocabulary.
        BadSpan: The spans do not lie in the context one behind the other, or nothing is left.
        NoAnchorToken: `anchored` is asked of a tokenizer that has none.
        PositionOutOfRange: The query has no such position.
    """
    read = resolve_ids(model, context, ("context",))
    asked = resolve_ids(model, query, query_at)
    if not read:
        raise EmptyContext("the context has no tokens", at=("context",))
    if not asked:
        raise EmptyQuery("the query has no tokens", at=query_at)
    merges = _border_merges(model, context, query, read + asked)
    anchor: tuple[int, ...] = ()
    if baseline == "anchored":
        anchor = (_anchor(model),)
        if read == anchor:
            raise EmptyContext("the context has no tokens beside the anchor", at=("context",))
        read = read if read[:1] == anchor else anchor + read
    check_length(model, len(read) + len(asked), ("context",) if query_at == QUERY else query_at)
    start, length = len(read), len(asked)
    kept: Sequence[int] = range(len(anchor))
    if isinstance(baseline, Without):
        kept = _rest(baseline.spans, start, ("baseline", "without"))
    ids, where = tuple(read[i] for i in kept), tuple(kept)
    if isinstance(baseline, Another):
        at = ("baseline", "context")
        ids = resolve_ids(model, baseline.context, at)
        if not ids:
            raise EmptyContext("the other context has no tokens", at=at)
        check_length(model, len(ids) + length, at)
        where, start = tuple(range(len(ids))), len(ids)
    elif baseline == "alone":
        start = 0
    return Pair(
        context=read,
        query=asked,
        anchored=bool(anchor),
        with_context=Prompt(read + asked, tuple(range(len(read) + length)), length),
        baseline=Prompt(ids + asked, where + tuple(range(start, start + length)), length),
        positions=resolve_positions(positions, length),
        border_merges=merges,
    )


def _border_merges(model: Model, context: Text, query: Text, apart: tuple[int, ...]) -> bool | None:
    if isinstance(context, str) and isinstance(query, str):
        return model.tokenizer.encode(context + query) != apart
    return None


def _anchor(model: Model) -> int:
    anchor = model.tokenizer.anchor
    if anchor is None or anchor >= model.vocab_size:
        raise NoAnchorToken("the tokenizer has no <|endoftext|> to anchor with", at=("baseline",))
    return anchor


def _rest(spans: Sequence[Span], length: int, at: Path) -> tuple[int, ...]:
    """The indices that no span covers."""
    check_spans(spans, length, at)
    kept = set(range(length)).difference(*(range(start, stop) for start, stop in spans))
    if not kept:
        raise BadSpan("the spans remove the whole context: take `matched`", at=at)
    return tuple(sorted(kept))


def check_spans(spans: Sequence[Span], length: int, at: Path) -> None:
    """Refuse spans that do not lie in `length` tokens one behind the other.

    Raises:
        BadSpan: One is empty, out of range, out of order, or overlaps the one before it.
    """
    if not spans:
        raise BadSpan("name at least one span", at=at)
    end = 0
    for i, (start, stop) in enumerate(spans):
        if not 0 <= start < stop <= length:
            raise BadSpan(
                f"a span is [start, stop) with 0 <= start < stop <= {length}",
                at=(*at, i),
                limit=length,
                actual=stop if 0 <= start < stop else start,
            )
        if start < end:
            raise BadSpan(
                "a span begins before the one before it ends", at=(*at, i), limit=end, actual=start
            )
        end = stop
