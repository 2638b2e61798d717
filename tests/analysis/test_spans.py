"""Spans of a context: given ones and their refusals, tokens, and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from schemas.pairs import Span
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.spans import given_spans, sentence_spans, token_spans
from service.engine import Model
from service.errors import BadSpan
from tests.checkpoints import ENDOFTEXT


def pair_of(model: Model, context: str | list[int], anchored: bool = False) -> Pair:
    """A pair of this context and a query of one token."""
    return resolve_pair(model, context, [9], "anchored" if anchored else "matched", "last")


def sentences(model: Model, text: str, anchored: bool = False) -> list[str]:
    """The text of every sentence."""
    pair = pair_of(model, text, anchored)
    spans = sentence_spans(model, pair)
    assert spans[0][0] == int(pair.head)
    assert spans[-1][1] == len(pair.context)
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    return [model.tokenizer.text(pair.context[start:stop]) for start, stop in spans]


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the", ["the"]),
        ("It is Rome.", ["It is Rome."]),
        ("Rome. Bern", ["Rome.", " Bern"]),
        ("Rome! Bern? Oslo.", ["Rome!", " Bern?", " Oslo."]),
        ("It is Washington D.C. The next", ["It is Washington D.C.", " The next"]),
        ("Use D.C. in a", ["Use D.C.", " in a"]),
        ("pi is 3.14 so", ["pi is 3.14 so"]),
        ("a.b.c", ["a.b.c"]),
        ("a\nb", ["a\n", "b"]),
        ("Wait... what", ["Wait...", " what"]),
        ("ends with a stop. ", ["ends with a stop. "]),
        ("Rome.\nBern", ["Rome.\n", "Bern"]),
        ("a\n\nb", ["a\n\n", "b"]),
    ],
)
def test_sentences_end_after_marks_before_white_space(
    tiny: Model, text: str, expected: list[str], anchored: bool
) -> None:
    """A sentence ends after a mark that white space follows, or after a line break, so the inner
    points of D.C. and 3.14 end none. The sentences cover the context without the anchor."""
    assert sentences(tiny, text, anchored) == expected


@pytest.mark.parametrize("anchored", [False, True])
def test_seed_context_has_three_sentences(bundled: Model, anchored: bool) -> None:
    """The bundled tokenizer splits the seed's context into three sentences."""
    text = (
        "The capital of Malaysia is Kuala Lumpur. The capital of USA is Washington D.C. "
        "The capital of Germany is"
    )
    assert sentences(bundled, text, anchored) == [
        "The capital of Malaysia is Kuala Lumpur.",
        " The capital of USA is Washington D.C.",
        " The capital of Germany is",
    ]


def test_context_of_ids_has_the_sentences_of_its_text(tiny: Model) -> None:
    """A context of ids has the same sentences as the text that it spells."""
    ids = list(tiny.tokenizer.encode("ab. cd"))
    pair = pair_of(tiny, ids)
    assert sentence_spans(tiny, pair) == sentence_spans(tiny, pair_of(tiny, "ab. cd"))
    assert len(sentence_spans(tiny, pair)) == 2


def test_token_spans_exclude_the_anchor(tiny: Model) -> None:
    """Every token has a span. The anchor has none, whether the service or the text put it there."""
    assert token_spans(pair_of(tiny, [4, 5, 6])) == ((0, 1), (1, 2), (2, 3))
    assert token_spans(pair_of(tiny, [4, 5, 6], anchored=True)) == ((1, 2), (2, 3), (3, 4))
    assert token_spans(pair_of(tiny, f"{ENDOFTEXT}x", anchored=True)) == ((1, 2),)
    assert token_spans(pair_of(tiny, f"{ENDOFTEXT}x")) == ((0, 1), (1, 2))


@pytest.mark.parametrize("cover", [False, True])
@pytest.mark.parametrize(
    ("spans", "anchored"),
    [
        ([(0, 6)], False),
        ([(0, 1), (1, 6)], False),
        ([(0, 2), (2, 3), (3, 6)], False),
        ([(1, 7)], True),
        ([(1, 2), (2, 7)], True),
    ],
)
def test_spans_that_cover_are_accepted(
    tiny: Model, spans: list[Span], anchored: bool, cover: bool
) -> None:
    """Spans that cover the context return unchanged, whether gaps are allowed or not."""
    pair = pair_of(tiny, [4, 5, 6, 7, 8, 9], anchored)
    assert given_spans(pair, spans, cover=cover) == tuple(spans)


@pytest.mark.parametrize(
    ("spans", "anchored", "index", "limit", "actual"),
    [
        ([(1, 6)], False, 0, 0, 1),
        ([(0, 2), (3, 6)], False, 1, 2, 3),
        ([(0, 2), (2, 5)], False, 1, 6, 5),
        ([(0, 1)], False, 0, 6, 1),
        ([(2, 7)], True, 0, 1, 2),
        ([(1, 3), (4, 7)], True, 1, 3, 4),
        ([(1, 6)], True, 0, 7, 6),
    ],
)
def test_gaps_are_refused_if_spans_must_cover(
    tiny: Model, spans: list[Span], anchored: bool, index: int, limit: int, actual: int
) -> None:
    """The refusal names the span, where it must begin or end, and where it does. Without `cover`
    the same spans are accepted."""
    pair = pair_of(tiny, [4, 5, 6, 7, 8, 9], anchored)
    with pytest.raises(BadSpan) as refused:
        given_spans(pair, spans, cover=True)
    assert refused.value.at == ("spans", index)
    assert (refused.value.limit, refused.value.actual) == (limit, actual)
    assert given_spans(pair, spans, cover=False) == tuple(spans)


@pytest.mark.parametrize("cover", [False, True])
@pytest.mark.parametrize(
    ("spans", "anchored", "at", "limit", "actual"),
    [
        ([], False, ("spans",), None, None),
        ([(0, 0)], False, ("spans", 0), 6, 0),
        ([(0, 6), (6, 6)], False, ("spans", 1), 6, 6),
        ([(0, 7)], False, ("spans", 0), 6, 7),
        ([(-1, 6)], False, ("spans", 0), 6, -1),
        ([(4, 2)], False, ("spans", 0), 6, 4),
        ([(0, 3), (2, 6)], False, ("spans", 1), 3, 2),
        ([(3, 6), (0, 3)], False, ("spans", 1), 6, 0),
        ([(0, 3), (0, 3)], False, ("spans", 1), 3, 0),
        ([(0, 7)], True, ("spans", 0), 1, 0),
        ([(0, 1), (1, 7)], True, ("spans", 0), 1, 0),
        ([(1, 8)], True, ("spans", 0), 7, 8),
    ],
)
def test_bad_spans_are_refused_with_path_limit_and_value(
    tiny: Model,
    spans: Sequence[Span],
    anchored: bool,
    cover: bool,
    at: tuple[str | int, ...],
    limit: int | None,
    actual: int | None,
) -> None:
    """A span that is empty, out of range, out of order, overlapping, or holds the anchor is refused
    with its path, the limit and the value."""
    pair = pair_of(tiny, [4, 5, 6, 7, 8, 9], anchored)
    with pytest.raises(BadSpan) as refused:
        given_spans(pair, spans, cover=cover)
    assert refused.value.at == at
    assert (refused.value.limit, refused.value.actual) == (limit, actual)
