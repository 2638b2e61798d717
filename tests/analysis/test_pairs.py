"""A context and a query as two prompts, compared with the oracle in every baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from service.analysis.echo import pair_positions, pair_tokens

from service.analysis.pairs import Another, Without, resolve_pair
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
def test_prompts_of_both_runs_equal_the_oracles(subject: Subject, baseline: str) -> None:
    """Ids and positions of both runs, and the query's positions, equal the oracle's."""
    pair, question = subject.pair(baseline), subject.question(baseline)
    for prompt, theirs in (
        (pair.with_context, question.full_prompt),
        (pair.baseline, question.baseline_prompt),
    ):
        assert (prompt.ids, prompt.positions) == (theirs.ids, theirs.positions)
    assert (pair.context, pair.query) == (question.context, question.query)
    places = pair_positions(pair)
    assert places.with_context == question.positions_with_context
    assert places.baseline == question.positions_baseline
    assert places.with_context[0] - places.baseline[0] == question.position_shift
    assert pair.rows == len(question.full_prompt.ids) + len(question.baseline_prompt.ids)


def test_baselines_have_their_tokens_and_positions(subject: Subject) -> None:
    """The tokens and positions of each baseline are those written out here."""
    context, query, anchor = (
        subject.ids(CONTEXT),
        subject.ids(QUERY),
        subject.model.tokenizer.anchor,
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


def test_anchor_is_not_added_twice(tiny: Model) -> None:
    """A context that begins with the anchor, as text or as id, gets no second one."""
    for context in (f"{ENDOFTEXT}abc", [tiny.tokenizer.anchor or 0, 5]):
        pair = resolve_pair(tiny, context, "the", "anchored", "last")
        assert pair.context.count(tiny.tokenizer.anchor or 0) == 1
        assert pair_tokens(tiny, pair).context[0].special
    assert resolve_pair(tiny, "abc", "the", "anchored", "last").anchored
    assert not resolve_pair(tiny, f"{ENDOFTEXT}abc", "the", "matched", "last").anchored


@pytest.mark.parametrize("baseline", BASELINES)
def test_reads_are_the_querys_rows(subject: Subject, baseline: str) -> None:
    """Query position j is row `length − query + j` of either run, at every point and layer."""
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
def test_border_merges_are_reported(
    tiny: Model, context: str | list[int], query: str | list[int], merges: bool | None
) -> None:
    """`border_merges` tells whether the joined text has other tokens, and the ids of the parts are
    run."""
    pair = resolve_pair(tiny, context, query, "matched", "last")
    assert pair.border_merges is merges
    assert pair_tokens(tiny, pair).border_merges is merges
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
        ({"baseline": Another([])}, EmptyContext, CONTEXT_OF, None, None),
        ({"baseline": Another("")}, EmptyContext, CONTEXT_OF, None, None),
        ({"baseline": Another([1, 999])}, TokenOutOfRange, (*CONTEXT_OF, 1), 262, 999),
        ({"baseline": Another([1] * 63)}, PromptTooLong, CONTEXT_OF, 64, 65),
        ({"baseline": Without(())}, BadSpan, WITHOUT, None, None),
        ({"baseline": Without(((0, 4),))}, BadSpan, WITHOUT, None, None),
        ({"baseline": Without(((0, 2), (2, 4)))}, BadSpan, WITHOUT, None, None),
        ({"baseline": Without(((0, 5),))}, BadSpan, (*WITHOUT, 0), 4, 5),
        ({"baseline": Without(((0, 1), (2, 2)))}, BadSpan, (*WITHOUT, 1), 4, 2),
        ({"baseline": Without(((3, 1),))}, BadSpan, (*WITHOUT, 0), 4, 3),
        ({"baseline": Without(((-1, 2),))}, BadSpan, (*WITHOUT, 0), 4, -1),
        ({"baseline": Without(((2, 3), (0, 1)))}, BadSpan, (*WITHOUT, 1), 3, 0),
        ({"baseline": Without(((0, 2), (1, 3)))}, BadSpan, (*WITHOUT, 1), 2, 1),
    ],
)
def test_invalid_pairs_are_refused_with_place_and_limit(
    tiny: Model,
    change: dict[str, Any],
    kind: type[Refused],
    at: tuple[str | int, ...],
    limit: int | None,
    actual: int | None,
) -> None:
    """Each refusal names the argument at fault, the limit and the value."""
    with pytest.raises(kind) as refused:
        resolve_pair(tiny, **{**ASKED, **change})
    assert (refused.value.at, refused.value.limit, refused.value.actual) == (at, limit, actual)


def test_pair_may_fill_every_position(tiny: Model) -> None:
    """A context and a query that fill every position are accepted in every baseline."""
    context = [1 + i for i in range(62)]
    for baseline in ("matched", "alone", Another(context), Without(((0, 61),))):
        pair = resolve_pair(tiny, context, [5, 6], baseline, "last")
        assert pair.with_context.positions == tuple(range(64))
    assert len(resolve_pair(tiny, context[1:], [5, 6], "anchored", "last").context) == 62


def test_anchored_needs_an_anchor_token(tmp_path: Path) -> None:
    """`anchored`, and no other baseline, is refused if the tokenizer lacks <|endoftext|>."""
    with torch.inference_mode(False):
        folder = save_tiny(tmp_path / "plain", special=False)
    model = load(str(folder), revision=None, device="cpu", dtype="float32")
    with pytest.raises(NoAnchorToken) as refused:
        resolve_pair(model, **{**ASKED, "baseline": "anchored"})
    assert refused.value.at == ("baseline",)
    resolve_pair(model, **ASKED)
