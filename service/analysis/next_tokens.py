"""Next tokens: the effect of the context on the model's prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schemas.common import UNSET, Unset
from schemas.weight_updates import LikelyToken, NextTokens
from service.analysis.pairs import Pair, position_slices
from service.engine import Model, Question, Site
from service.errors import NonFiniteActivation
from service.theory import kl_divergence

LIKELIEST = 10
"""Number of tokens in an answer."""


def next_tokens(model: Model, pair: Pair, asked: bool) -> Question[Sequence[NextTokens] | Unset]:
    """Find the likeliest next tokens at each requested position, if they are asked for."""
    if not asked:
        return UNSET
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
    return found


def last_site(model: Model) -> Site:
    """The residual stream after the last block, which the unembedding reads."""
    return Site(model.n_layers - 1, "resid_post")


def unembedded(model: Model, stream: Tensor) -> Tensor:
    """Logits of rows of the stream after the last block, at least float32, (rows, vocab).

    Raises:
        NonFiniteActivation: They hold NaN or infinity.
    """
    logits = model.logits(stream.to(torch.promote_types(stream.dtype, torch.float32)))
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteActivation("The logits hold NaN or infinity.")
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
