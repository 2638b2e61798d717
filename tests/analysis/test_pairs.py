"""A context and a query as two prompts: every baseline, compared with the oracle's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.common import UNSET
from schemas.pairs import AnotherContext, Baseline, Span, WithoutSpans
from service.analysis.pairs import resolve_pair
from service.engine import Model, Site, load
from service.errors import (
    BadSpan,
    EmptyContext,
    EmptyQuery,
    NoAnchorToken,
    PositionOutOfRange,
    PromptTooLong,
    Refused,
    TokenOutOfRange,
)
from tests.analysis.subjects import BASELINES, CONTEXT, QUERY, SPANS, Subject
from tests.checkpoints import ENDOFTEXT, save_tiny


@pytest.mark.parametrize("baseline", BASELINES)
def test_both_prompts_equal_the_oracles(subject: Subject, baseline: str) -> None:
    """Ids and positions of both runs, and the positions of the query, are those of theory.md 5."""
    pair, question = subject.pair(baseline), subject.question(baseline)
    for prompt, theirs in (
        (pair.with_context, question.full_prompt),
        (pair.baseline, question.baseline_prompt),
    ):
        assert (prompt.ids, prompt.positions) == (theirs.ids, theirs.positions)
    assert (pair.context, pair.query) == (question.context, question.query)
    tokens = subject.model.tokenizer.tokens
    model, requested, stream, shown, positions, shift = pair.relation(subject.model, "sequential")
    assert (model, requested, stream) == (subject.model.summary, pair.kind, "sequential")
    assert (shown.context, shown.query) == (tokens(question.context), tokens(question.query))
    assert positions.with_context == question.positions_with_context
    assert positions.baseline == question.positions_baseline
    assert shift == question.position_shift


def test_each_baseline_has_its_tokens_and_positions(subject: Subject) -> None:
    """Each baseline has the written-out ids and positions, for a context of nine tokens and a query
    of three."""
    context, query, anchor = (
        subject.ids(CONTEXT),
        subject.ids(QUERY),
        subject.model.tokenizer.anchor[0],
    )
    assert anchor is not None
    prompts = {name: subject.pair(name).baseline for name in BASELINES}
    assert (prompts["matched"].ids, prompts["matched"].positions) == (query, (9, 10, 11))
    assert (prompts["alone"].ids, prompts["alone"].positions) == (query, (0, 1, 2))
    assert (prompts["anchored"].ids, prompts["anchored"].positions) == (
        (anchor, *query),
        (0, 10, 11, 12),
    )
    kept = tuple(i for i in range(9) if not any(a <= i < b for a, b in SPANS))
    assert prompts["without"].ids == (*(context[i] for i in kept), *query)
    assert prompts["without"].positions == (*kept, 9, 10, 11)
    assert prompts["another"].positions == tuple(range(8))
    assert subject.pair("anchored").with_context.ids == (anchor, *context, *query)


def test_anchor_is_added_only_once(tiny: Model) -> None:
    """A context that begins with the anchor, as text or as id, has it once."""
    for context in (f"{ENDOFTEXT}abc", [*tiny.tokenizer.anchor, 5]):
        pair = resolve_pair(tiny, context, "the", "anchored", "last")
        assert pair.context.count(tiny.tokenizer.anchor[0]) == 1
        assert tiny.tokenizer.tokens(pair.context)[0].special is True
    assert resolve_pair(tiny, "abc", "the", "anchored", "last").head
    assert not resolve_pair(tiny, f"{ENDOFTEXT}abc", "the", "matched", "last").head


@pytest.mark.parametrize("baseline", BASELINES)
def test_reads_are_rows_of_the_query(subject: Subject, baseline: str) -> None:
    """Query position j is row `length − query + j` of both runs, at every point and layer."""
    pair = subject.pair(baseline, [2, 0])
    reads = pair.reads([0, 2], ["mlp_in", "resid_mid"])
    assert set(reads) == {Site(i, p) for i in (0, 2) for p in ("mlp_in", "resid_mid")}
    for prompt in (pair.with_context, pair.baseline):
        run = prompt.run(reads, torch.float64)
        (rows,) = {tuple(rows) for rows in run.reads.values()}
        assert [run.tokens[row] for row in rows] == [pair.query[2], pair.query[0]]
        assert run.dtype == torch.float64


def test_reordered_context_keeps_the_positions(subject: Subject) -> None:
    """Reordering permutes the context's ids and keeps the query and all positions."""
    pair, question = subject.pair("matched"), subject.question("matched")
    order = [8, 0, 7, 1, 6, 2, 5, 3, 4]
    found, theirs = pair.reordered(order), question.reordered(order)
    assert (found.ids, found.positions) == (theirs.ids, theirs.positions)


@pytest.mark.parametrize(
    ("context", "query", "merges"),
    [
        ("ab", "c", True),
        ("a", "bc", True),
        ("x ", "the", True),
        ("x", " the", False),
        (" t", "he", True),
        ("a", "x", False),
        ([70, 71], "c", None),
        ("ab", [72], None),
    ],
)
def test_border_merges_says_whether_one_text_has_other_tokens(
    tiny: Model, context: str | list[int], query: str | list[int], merges: bool | None
) -> None:
    """`border_merges` is true if the joined text has other ids, and absent for ids. The run has the
    ids of the parts either way."""
    pair = resolve_pair(tiny, context, query, "matched", "last")
    assert pair.border_merges is merges
    shown = pair.relation(tiny)[3]
    assert shown.border_merges is (UNSET if merges is None else merges)
    if isinstance(context, str) and isinstance(query, str):
        apart = tiny.tokenizer.encode(context) + tiny.tokenizer.encode(query)
        assert pair.with_context.ids == apart


ASKED: dict[str, Any] = {
    "context": [1, 2, 3, 4],
    "query": [5, 6],
    "baseline": "matched",
    "positions": "last",
}
WITHOUT, CONTEXT_OF = ("baseline", "without"), ("baseline", "context")


def without(*spans: Span) -> WithoutSpans:
    """The baseline without these spans."""
    return WithoutSpans(without=list(spans))


def another(context: str | list[int]) -> AnotherContext:
    """The baseline with this context."""
    return AnotherContext(context=context)


@pytest.mark.parametrize(
    ("change", "kind", "at", "limit", "actual"),
    [
        ({"context": ""}, EmptyContext, ("context",), None, None),
        ({"context": []}, EmptyContext, ("context",), None, None),
        ({"query": ""}, EmptyQuery, ("query",), None, None),
        ({"query": []}, EmptyQuery, ("query",), None, None),
        ({"context": [1, 263]}, TokenOutOfRange, ("context", 1), 262, 263),
        ({"query": [-1]}, TokenOutOfRange, ("query", 0), 262, -1),
        ({"context": [1] * 63}, PromptTooLong, ("context",), 64, 65),
        ({"context": [1] * 62, "baseline": "anchored"}, PromptTooLong, ("context",), 64, 65),
        ({"positions": [0, 2]}, PositionOutOfRange, ("positions", 1), 1, 2),
        ({"baseline": another([])}, EmptyContext, CONTEXT_OF, None, None),
        ({"baseline": another("")}, EmptyContext, CONTEXT_OF, None, None),
        ({"baseline": another([1, 999])}, TokenOutOfRange, (*CONTEXT_OF, 1), 262, 999),
        ({"baseline": another([1] * 63)}, PromptTooLong, CONTEXT_OF, 64, 65),
        ({"baseline": without()}, BadSpan, WITHOUT, None, None),
        ({"baseline": without((0, 4))}, BadSpan, WITHOUT, None, None),
        ({"baseline": without((0, 2), (2, 4))}, BadSpan, WITHOUT, None, None),
        ({"baseline": without((0, 5))}, BadSpan, (*WITHOUT, 0), 4, 5),
        ({"baseline": without((0, 1), (2, 2))}, BadSpan, (*WITHOUT, 1), 4, 2),
        ({"baseline": without((3, 1))}, BadSpan, (*WITHOUT, 0), 4, 3),
        ({"baseline": without((-1, 2))}, BadSpan, (*WITHOUT, 0), 4, -1),
        ({"baseline": without((2, 3), (0, 1))}, BadSpan, (*WITHOUT, 1), 3, 0),
        ({"baseline": without((0, 2), (1, 3))}, BadSpan, (*WITHOUT, 1), 2, 1),
    ],
)
def test_bad_pair_is_refused_with_path_limit_and_value(
    tiny: Model,
    change: dict[str, Any],
    kind: type[Refused],
    at: tuple[str | int, ...],
    limit: int | None,
    actual: int | None,
) -> None:
    """Each refusal has the path of the argument at fault, the limit and the value."""
    with pytest.raises(kind) as refused:
        resolve_pair(tiny, **{**ASKED, **change})
    assert (refused.value.at, refused.value.limit, refused.value.actual) == (at, limit, actual)


def test_prompts_may_fill_every_position(tiny: Model) -> None:
    """A context and a query that fill every position are accepted in every baseline."""
    context = [1 + i for i in range(62)]
    baselines: list[Baseline] = ["matched", "alone", another(context), without((0, 61))]
    for baseline in baselines:
        pair = resolve_pair(tiny, context, [5, 6], baseline, "last")
        assert pair.with_context.positions == tuple(range(64))
    assert len(resolve_pair(tiny, context[1:], [5, 6], "anchored", "last").context) == 62


def test_anchored_is_refused_without_an_anchor_token(tmp_path: Path) -> None:
    """A tokenizer without <|endoftext|> refuses `anchored` and supports the other baselines."""
    with torch.inference_mode(False):
        folder = save_tiny(tmp_path / "plain", special=False)
    model = load(str(folder), revision=None, device="cpu", dtype="float32")
    with pytest.raises(NoAnchorToken) as refused:
        resolve_pair(model, **{**ASKED, "baseline": "anchored"})
    assert refused.value.at == ("baseline",)
    resolve_pair(model, **ASKED)
