"""Echo: what was run, so that a caller sees that it is what was meant."""

from __future__ import annotations

from dataclasses import dataclass

from service.analysis.pairs import Pair
from service.engine import Model, Token


@dataclass(frozen=True)
class PairTokens:
    """The ids that were run, as text, and whether tokenising both parts together would differ."""

    context: tuple[Token, ...]
    query: tuple[Token, ...]
    border_merges: bool | None = None


@dataclass(frozen=True)
class PairPositions:
    """Where the query's tokens stand in each run."""

    with_context: tuple[int, ...]
    baseline: tuple[int, ...]


def pair_tokens(model: Model, pair: Pair) -> PairTokens:
    """The tokens of a pair as they are echoed."""
    tokens = model.tokenizer.tokens
    return PairTokens(tokens(pair.context), tokens(pair.query), pair.border_merges)


def pair_positions(pair: Pair) -> PairPositions:
    """The query's positions as they are echoed."""
    length = len(pair.query)
    return PairPositions(pair.with_context.positions[-length:], pair.baseline.positions[-length:])
