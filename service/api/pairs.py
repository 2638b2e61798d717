"""What every resource about a context and a query does with its body, and repeats in its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.common import Text
from schemas.pairs import AnotherContext, PairRequest, WithoutSpans
from service.analysis.echo import pair_positions, pair_tokens
from service.analysis.pairs import (
    Another,
    Baseline,
    Pair,
    Stream,
    Without,
    resolve_pair,
)
from service.api.exchange import Exchange
from service.engine import Model
from service.errors import NotSupported, Path


async def resolved_pair(ask: Exchange, body: PairRequest) -> Pair:
    """The two prompts that a body asks to compare."""
    return await ask.tokenized(
        resolve_pair,
        ask.model,
        body.context,
        body.query,
        _baseline(body),
        body.positions,
    )


def probe_pairs(model: Model, body: PairRequest, pair: Pair, queries: Sequence[Text]) -> list[Pair]:
    """The context and baseline of a pair before each of other queries, at its last token."""
    baseline = _baseline(body)
    if isinstance(baseline, Another):
        baseline = Another(pair.baseline.ids[: -len(pair.query)])
    return [
        resolve_pair(model, pair.context, query, baseline, "last", query_at=("probe_queries", i))
        for i, query in enumerate(queries)
    ]


def pair_rows(pair: Pair, stream: Stream) -> int:
    """Rows of both runs; in the sequential stream the baseline's once a position."""
    runs = len(pair.positions) if stream == "sequential" else 1
    return len(pair.with_context.ids) + runs * len(pair.baseline.ids)


def repeated(ask: Exchange, body: PairRequest, pair: Pair, stream: Stream) -> dict[str, Any]:
    """The part of an answer that says what its numbers are relative to."""
    positions = pair_positions(pair)
    return {
        "baseline": body.baseline,
        "stream": stream,
        "tokens": pair_tokens(ask.model, pair),
        "positions": positions,
        "position_shift": positions.with_context[0] - positions.baseline[0],
    }


def only_here(body: PairRequest) -> None:
    """Refuse what the reading of a context in parts has no meaning for.

    Raises:
        NotSupported: Another baseline than `matched` and `anchored`, or another stream than `free`.
    """
    refuse(body.baseline not in ("matched", "anchored"), "take `matched` or `anchored`", "baseline")
    refuse(body.stream != "free", "only the free stream is defined here", "stream")


def refuse(wrong: bool, detail: str, *at: str | int) -> None:
    """Refuse a combination that has no answer.

    Raises:
        NotSupported: It is one.
    """
    if wrong:
        path: Path = at
        raise NotSupported(detail, at=path)


def _baseline(body: PairRequest) -> Baseline:
    if isinstance(body.baseline, WithoutSpans):
        return Without(tuple(body.baseline.without))
    if isinstance(body.baseline, AnotherContext):
        return Another(body.baseline.context)
    return body.baseline
