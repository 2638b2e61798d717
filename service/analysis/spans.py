"""Spans of a context: given ones checked, sentences found."""

from __future__ import annotations

from collections.abc import Sequence

from service.analysis.pairs import Pair, Span, check_spans
from service.engine import Model
from service.errors import BadSpan

ENDS = (".", "!", "?", "\n")
AT = ("spans",)


def token_spans(pair: Pair) -> tuple[Span, ...]:
    """Every token of the context by itself, without the anchor."""
    return tuple((i, i + 1) for i in range(int(pair.anchored), len(pair.context)))


def sentence_spans(model: Model, pair: Pair) -> tuple[Span, ...]:
    """The context's sentences, without the anchor.

    One ends behind a token that ends in `.`, `!`, `?` or a line break, where the next begins with
    white space: so "D.C." is no end, and "D.C. The" is one. Line breaks behind it, and white space
    at the end of the context, belong to the sentence before them.
    """
    first, count = int(pair.anchored), len(pair.context)
    texts = [model.tokenizer.token(token).text for token in pair.context]
    while count > first and texts[count - 1].isspace():
        count -= 1
    ends = [
        i + 1
        for i in range(first, count - 1)
        if texts[i].endswith(ENDS)
        and (texts[i].endswith("\n") or texts[i + 1][:1].isspace())
        and not ("\n" in texts[i + 1] and texts[i + 1].isspace())
    ]
    return tuple(zip([first, *ends], [*ends, len(pair.context)], strict=True))


def given_spans(pair: Pair, spans: Sequence[Span], *, cover: bool) -> tuple[Span, ...]:
    """The spans that a caller gives, as indices into the context as it is echoed.

    Args:
        pair: Whose context.
        spans: Half-open, in order.
        cover: Whether they must leave no token of the context out; the anchor is none of it.

    Raises:
        BadSpan: They do not lie in the context one behind the other, or leave something out.
    """
    first, count = int(pair.anchored), len(pair.context)
    check_spans(spans, count, AT)
    if spans[0][0] < first:
        raise BadSpan("the anchor belongs to both runs: begin at 1", at=(*AT, 0), limit=1, actual=0)
    if cover:
        edges = [first, *(stop for _, stop in spans)]
        for i, (start, _) in enumerate(spans):
            if start != edges[i]:
                raise BadSpan(
                    "spans cover the context without gaps",
                    at=(*AT, i),
                    limit=edges[i],
                    actual=start,
                )
        if edges[-1] != count:
            raise BadSpan(
                "spans cover the context to its end",
                at=(*AT, len(spans) - 1),
                limit=count,
                actual=edges[-1],
            )
    return tuple((start, stop) for start, stop in spans)
