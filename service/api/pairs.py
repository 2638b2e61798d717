"""What every resource about a context and a query does with its body, and repeats in its answer."""

from __future__ import annotations

from typing import Any

from schemas.pairs import AnotherContext, PairRequest, WithoutSpans
from service.analysis.pairs import (
    Another,
    Baseline,
    Pair,
    Without,
    pair_positions,
    pair_tokens,
    resolve_pair,
)
from service.api.asking import Asking
from service.errors import NotSupported


async def resolved_pair(ask: Asking, body: PairRequest) -> Pair:
    """The two prompts that a body asks to compare.

    Raises:
        NotSupported: Another stream than `free`.
    """
    if body.stream != "free":
        raise NotSupported("only the free stream is served yet", at=("stream",))
    return await ask.off_loop(
        "tokenize",
        resolve_pair,
        ask.model,
        body.context,
        body.query,
        _baseline(body),
        body.positions,
    )


def repeated(ask: Asking, body: PairRequest, pair: Pair) -> dict[str, Any]:
    """The part of an answer that says what its numbers are relative to."""
    positions = pair_positions(pair)
    return {
        "baseline": body.baseline,
        "stream": body.stream,
        "tokens": pair_tokens(ask.model, pair),
        "positions": positions,
        "position_shift": positions.with_context[0] - positions.baseline[0],
    }


def _baseline(body: PairRequest) -> Baseline:
    if isinstance(body.baseline, WithoutSpans):
        return Without(tuple(body.baseline.without))
    if isinstance(body.baseline, AnotherContext):
        return Another(body.baseline.context)
    return body.baseline
