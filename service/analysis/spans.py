"""Spans of a context: every token, sentences, or given spans that are checked."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.pairs import Span
from service.analysis.pairs import Pair, check_spans
from service.engine import Model
from service.errors import BadSpan

ENDS = (".", "!", "?", "\n")
AT = ("spans",)


def token_spans(pair: Pair) -> tuple[Span, ...]:
    """One span per token of the context, without the anchor."""
    return tuple((i, i + 1) for i in range(pair.head, len(pair.context)))


def sentence_spans(model: Model, pair: Pair) -> tuple[Span, ...]:
    """The context's sentences, without the anchor and the tokenizer's special tokens.

    A sentence ends after a token that ends in `.`, `!`, `?` or a line break, if the next token
    begins with white space. So "D.C." is no end, and "D.C. The" is one. Line breaks after the end,
    and white space at the end of the context, belong to the sentence before them.
    """
    first, count = pair.beginning, len(pair.context)
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
    """Check the spans of a request, which are indices into the echoed context.

    Args:
        pair: The pair whose context they divide.
        spans: Half-open spans in ascending order.
        cover: Whether they must cover every token of the context but the anchor.

    Raises:
        BadSpan: A span is out of range, empty, out of order, overlaps, or leaves a gap.
    """
    first, count = pair.head, len(pair.context)
    check_spans(spans, count, AT)
    if spans[0][0] < first:
        raise BadSpan(
            f"The anchor belongs to both runs. Begin at token {first}.",
            at=(*AT, 0),
            limit=first,
            actual=spans[0][0],
        )
    if cover:
        edges = [first, *(stop for _, stop in spans)]
        for i, (start, _) in enumerate(spans):
            if start != edges[i]:
                raise BadSpan(
                    f"Spans must cover the context. This one must begin at {edges[i]}.",
                    at=(*AT, i),
                    limit=edges[i],
                    actual=start,
                )
        if edges[-1] != count:
            raise BadSpan(
                f"The spans must cover the context. The last one must end at {count}.",
                at=(*AT, len(spans) - 1),
                limit=count,
                actual=edges[-1],
            )
    return tuple((start, stop) for start, stop in spans)
