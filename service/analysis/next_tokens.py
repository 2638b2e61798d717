"""Next tokens: what the context does to the model's prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.analysis.pairs import Pair, position_slices
from service.engine import Model, Question, Site
from service.errors import NonFiniteActivation
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
    site = last_site(model)
    reads = {site: pair.positions}
    context, baseline = yield [pair.with_context.run(reads), pair.baseline.run(reads)]
    found: list[NextTokens] = []
    for part in position_slices(len(pair.positions)):
        with_context, without = (unembedded(model, run[site][part]) for run in (context, baseline))
        columns = (
            pair.positions[part],
            likeliest(model, with_context),
            likeliest(model, without),
            kl_divergence(with_context, without).tolist(),
        )
        found += [NextTokens(*row) for row in zip(*columns, strict=True)]
        yield ()
    return tuple(found)


def last_site(model: Model) -> Site:
    """The stream behind the last block, which the unembedding reads."""
    return Site(model.n_layers - 1, "resid_post")


def unembedded(model: Model, stream: Tensor) -> Tensor:
    """Logits of some rows of the stream behind the last block, at least float32, (rows, vocab).

    Raises:
        NonFiniteActivation: They hold NaN or infinity.
    """
    logits = model.logits(stream.to(torch.promote_types(stream.dtype, torch.float32)))
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteActivation("the logits hold NaN or infinity")
    return logits


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
