"""A context and a query, and the two runs that are compared.

The run with context reads context and query. The baseline run reads the query with less of it:

    matched            no context; the query at its positions      content
    alone              no context; the query from position 0       content, position, first token
    anchored           the anchor first in both runs               content without the first token
    without spans      the rest of the context, positions kept     the spans
    another context    that context, then the query                one context against another

GPT-2's and OPT's position embedding is part of the residual stream, so the position of the query in
the baseline determines what the difference holds, and `matched` is the default. Where positions act
only in attention, a query without context gives the same vectors at every position: `alone` equals
`matched`, the query is the first token in both, and `anchored` is the default.

A context given as text begins with the special tokens that the checkpoint's tokenizer adds. Context
and query are tokenised separately, because merges across the border would change the query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.activations import HookPoint
from schemas.common import UNSET, ModelSummary
from schemas.equivalence_checks import Apply
from schemas.pairs import (
    AnotherContext,
    Baseline,
    Form,
    PairPositions,
    PairTokens,
    Span,
    Stream,
    WithoutSpans,
)
from service.analysis.inputs import (
    Text,
    beginning_of,
    check_length,
    resolve_ids,
    resolve_positions,
)
from service.engine import Activations, Follow, Model, Run, Site
from service.errors import BadSpan, EmptyContext, EmptyQuery, NoAnchorToken, Path

Index = NDArray[np.int64]
QUERY: Path = ("query",)

Relation = tuple[ModelSummary, Baseline, Stream, PairTokens, PairPositions, int]
"""The fields of `PairAnswer`: what the numbers of an answer are relative to."""


@dataclass(frozen=True)
class Prompt:
    """Tokens at positions that end in the query.

    Args:
        ids: (rows,).
        positions: (rows,).
        query_length: Number of last rows that are the query.
        trunk: Number of first rows with which other prompts begin; None: all but the query.
    """

    ids: tuple[int, ...] | Index
    positions: tuple[int, ...] | Index
    query_length: int
    trunk: int | None = None

    def run(
        self,
        reads: Mapping[Site, Sequence[int]],
        dtype: torch.dtype | None = None,
    ) -> Run:
        """Form the run that reads positions of the query, given as indices into it."""
        first = len(self.ids) - self.query_length
        rows = {site: [first + position for position in wanted] for site, wanted in reads.items()}
        trunk = first if self.trunk is None else self.trunk
        return Run(self.ids, self.positions, rows, dtype, trunk=trunk)


@dataclass(frozen=True)
class Pair:
    """Two prompts that end in the same query.

    Args:
        kind: The baseline that is used: the one that the request names, or what it resolves to.
        context: Ids of the context, with the anchor or the special tokens that the tokenizer adds.
        query: Ids of the query.
        head: Number of first ids of the context that both prompts have: the anchor, or 0.
        beginning: Number of first ids that are the anchor or that the tokenizer adds.
        with_context: The prompt with context.
        baseline: The prompt that it is compared with.
        positions: The requested positions, indices into the query.
        border_merges: Whether context and query, tokenised together, have other ids. None for ids.
    """

    kind: Baseline
    context: tuple[int, ...]
    query: tuple[int, ...]
    head: int
    beginning: int
    with_context: Prompt
    baseline: Prompt
    positions: tuple[int, ...]
    border_merges: bool | None

    @property
    def echoed_tokens(self) -> int:
        """Number of tokens that an answer repeats: context, query, and the baseline's context."""
        other = isinstance(self.kind, AnotherContext)
        return len(self.context) + len(self.baseline.ids if other else self.query)

    def relation(self, model: Model, stream: Stream = "free") -> Relation:
        """The part of an answer that says what its numbers are relative to."""
        length = len(self.query)
        where, base = (
            tuple(map(int, prompt.positions[-length:]))
            for prompt in (self.with_context, self.baseline)
        )
        tokens = model.tokenizer.tokens
        merges = UNSET if self.border_merges is None else self.border_merges
        return (
            model.summary,
            self.kind,
            stream,
            PairTokens(tokens(self.context), tokens(self.query), merges),
            PairPositions(where, base),
            where[0] - base[0],
        )

    def reads(
        self, layers: Sequence[int], points: Sequence[HookPoint]
    ) -> dict[Site, tuple[int, ...]]:
        """The requested positions at all these points of all these layers."""
        return {Site(layer, point): self.positions for layer in layers for point in points}

    @property
    def matched(self) -> Prompt:
        """The query at its positions with context, with nothing before it."""
        return self.keeping(())

    def baseline_runs(
        self,
        layers: Sequence[int],
        points: Sequence[HookPoint],
        stream: Stream,
        dtype: torch.dtype | None = None,
        apply: Apply = "factored",
        form: Form = "bias",
    ) -> list[Run]:
        """Form the baseline's runs, which read hook points of layers at the requested positions.

        There is one run in the free stream. In the sequential stream there is one per position,
        which follows the run with context there, applies W + ΔW as `apply` says, and carries Δh as
        `form` says.
        """
        sites = [Site(layer, point) for layer in layers for point in points]
        if stream == "free":
            return [self.baseline.run(dict.fromkeys(sites, self.positions), dtype)]
        source = self.with_context.run(dict.fromkeys(sites, self.positions), dtype)
        # All these runs follow rows of the query, so it is part of the trunk.
        source = replace(source, trunk=len(source.tokens))
        ahead = len(self.with_context.ids) - len(self.query)
        behind = len(self.baseline.ids) - len(self.query)
        return [
            replace(
                self.baseline.run(dict.fromkeys(sites, (position,)), dtype),
                patch=Follow(source, ahead + position, behind + position, apply, form),
            )
            for position in self.positions
        ]

    def keeping(self, kept: Sequence[int]) -> Prompt:
        """The query at its positions after some of the context's tokens, which keep theirs."""
        length = len(self.query)
        where = np.asarray(kept, np.int64)
        ids = np.concatenate([self._context[where], self._query])
        positions = np.concatenate([where, self._query_positions])
        # The first tokens that are kept are those with which the prompt with context begins.
        first = np.logical_and.accumulate(where == np.arange(len(where)))
        shared = len(np.flatnonzero(first))
        return Prompt(ids, positions, length, shared)

    @cached_property
    def _context(self) -> Index:
        return np.asarray(self.context, np.int64)

    @cached_property
    def _query(self) -> Index:
        return np.asarray(self.query, np.int64)

    @cached_property
    def _query_positions(self) -> Index:
        return np.asarray(self.with_context.positions[-len(self.query) :], np.int64)

    def reordered(self, order: Sequence[int]) -> Prompt:
        """The prompt with context, its context in another order (indices into it)."""
        ids = tuple(self.context[i] for i in order) + self.query
        return Prompt(ids, self.with_context.positions, len(self.query), self.beginning)


def gathered(runs: Sequence[Activations]) -> Activations:
    """The activations of several runs at the same sites, concatenated."""
    if len(runs) == 1:
        return runs[0]
    return Activations(
        {site: torch.cat([run[site] for run in runs]) for site in runs[0]},
        tuple(condition for run in runs for condition in run.conditions),
    )


def resolve_pair(
    model: Model,
    context: Text,
    query: Text,
    baseline: Baseline | None,
    positions: Literal["last", "all"] | Sequence[int],
    *,
    query_at: Path = QUERY,
) -> Pair:
    """Lay a context and a query out as two prompts.

    Args:
        model: The resident model.
        context: The text before the query.
        query: The text whose vectors are compared.
        baseline: The run that the run with context is compared with; None: the model's default.
        positions: Indices into the query.
        query_at: Path of the query in the request.

    Raises:
        EmptyContext: The context, or the baseline's, has no tokens.
        EmptyQuery: The query has no tokens.
        PromptTooLong: Together they need more positions than the model has.
        TokenOutOfRange: An id is not in the vocabulary.
        BadSpan: A span is out of range, empty, out of order or overlaps, or the spans remove all.
        NoAnchorToken: Baseline `anchored`, but the tokenizer has no anchor.
        PositionOutOfRange: The query has no such position.
    """
    kind = resolve_baseline(model, baseline)
    read = resolve_ids(model, context, ("context",))
    asked = resolve_ids(model, query, query_at)
    if not read:
        raise EmptyContext("The context has no tokens.", at=("context",))
    if not asked:
        raise EmptyQuery("The query has no tokens.", at=query_at)
    merges = _border_merges(model, context, query, read + asked)
    read = beginning_of(model, context) + read
    anchor: tuple[int, ...] = ()
    if kind == "anchored":
        anchor = _anchor(model)
        if read == anchor:
            raise EmptyContext("The context has no tokens besides the anchor.", at=("context",))
        read = read if read[: len(anchor)] == anchor else anchor + read
    check_length(model, len(read) + len(asked), ("context",) if query_at == QUERY else query_at)
    start, length = len(read), len(asked)
    kept: Sequence[int] = range(len(anchor))
    if isinstance(kind, WithoutSpans):
        kept = _rest(kind.without, start, ("baseline", "without"))
    ids, where = tuple(read[i] for i in kept), tuple(kept)
    if isinstance(kind, AnotherContext):
        at = ("baseline", "context")
        ids = resolve_ids(model, kind.context, at)
        if not ids:
            raise EmptyContext("The baseline's context has no tokens.", at=at)
        ids = beginning_of(model, kind.context) + ids
        check_length(model, len(ids) + length, at)
        where, start = tuple(range(len(ids))), len(ids)
    elif kind == "alone":
        start = 0
    prefix = model.tokenizer.prefix
    own = len(prefix) if read[: len(prefix)] == prefix else 0
    return Pair(
        kind=kind,
        context=read,
        query=asked,
        head=len(anchor),
        beginning=max(len(anchor), own),
        with_context=Prompt(read + asked, tuple(range(len(read) + length)), length),
        baseline=Prompt(ids + asked, where + tuple(range(start, start + length)), length),
        positions=resolve_positions(positions, length),
        border_merges=merges,
    )


def resolve_baseline(model: Model, baseline: Baseline | None) -> Baseline:
    """The baseline that a request names, or its default for the model's positions."""
    if model.absolute_positions:
        return baseline or "matched"
    if baseline is None and model.anchor is not None:
        return "anchored"
    # Where positions are relative, a query without context gives the same vectors at any position.
    return "matched" if baseline in (None, "alone") else baseline


def _border_merges(model: Model, context: Text, query: Text, apart: tuple[int, ...]) -> bool | None:
    if isinstance(context, str) and isinstance(query, str):
        return model.tokenizer.encode(context + query) != apart
    return None


def _anchor(model: Model) -> tuple[int, ...]:
    if model.anchor is None:
        raise NoAnchorToken(
            "The tokenizer has no token that begins a text, which `anchored` needs. Choose another "
            "baseline.",
            at=("baseline",),
        )
    return model.tokenizer.anchor


def _rest(spans: Sequence[Span], length: int, at: Path) -> tuple[int, ...]:
    """Indices that no span covers."""
    check_spans(spans, length, at)
    kept = set(range(length)).difference(*(range(start, stop) for start, stop in spans))
    if not kept:
        raise BadSpan("The spans remove the whole context. Use the baseline `matched`.", at=at)
    return tuple(sorted(kept))


def check_spans(spans: Sequence[Span], length: int, at: Path) -> None:
    """Refuse spans that are not in ascending order within `length` tokens.

    Raises:
        BadSpan: A span is empty, out of range, out of order, or overlaps the one before it.
    """
    if not spans:
        raise BadSpan("The list of spans is empty. Name at least one span.", at=at)
    end = 0
    for i, (start, stop) in enumerate(spans):
        if not 0 <= start < stop <= length:
            raise BadSpan(
                f"A span is [start, stop) with 0 <= start < stop <= {length}.",
                at=(*at, i),
                limit=length,
                actual=stop if 0 <= start < stop else start,
            )
        if start < end:
            raise BadSpan(
                "A span begins before the previous one ends.", at=(*at, i), limit=end, actual=start
            )
        end = stop
