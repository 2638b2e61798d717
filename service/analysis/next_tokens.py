"""Next tokens: what the context does to the model's prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from service.analysis.pairs import Pair
from service.engine import Model, Question, Site
from service.theory import kl_divergence

LIKELIEST = 10
"""How many are named."""


@dataclass(frozen=True)
class LikelyToken:
    """A token that may come next."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class NextTokens:
    """The likeliest tokens after one query position, in each run.

    Args:
        position: Index into the query.
        with_context: Likeliest first.
        baseline: Likeliest first; of the ordinary baseline run, without any patch.
        kl_divergence: KL(with context ‖ baseline) in nats, over the whole vocabulary.
    """

    position: int
    with_context: Sequence[LikelyToken]
    baseline: Sequence[LikelyToken]
    kl_divergence: float


def next_tokens(model: Model, pair: Pair, asked: bool) -> Question[tuple[NextTokens, ...] | None]:
    """The likeliest next tokens at each asked position; None where they are not asked for."""
    if not asked:
        return None
    site = Site(model.n_layers, "logits")
    reads = {site: pair.positions}
    context, baseline = yield [pair.with_context.run(reads), pair.baseline.run(reads)]
    columns = (
        pair.positions,
        likeliest(model, context[site]),
        likeliest(model, baseline[site]),
        kl_divergence(context[site], baseline[site]).tolist(),
    )
    return tuple(NextTokens(*row) for row in zip(*columns, strict=True))


def likeliest(model: Model, logits: Tensor) -> list[tuple[LikelyToken, ...]]:
    """The likeliest next tokens of each row of logits, (rows, vocab)."""
    top = logits.double().softmax(-1).topk(min(LIKELIEST, logits.shape[-1]), dim=-1)
    return [
        tuple(
            LikelyToken(id, model.tokenizer.token(id).text, probability)
            for id, probability in zip(ids, probabilities, strict=True)
        )
        for ids, probabilities in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
