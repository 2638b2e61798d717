"""Next tokens: the effect of the context on the model's prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schemas.weight_updates import LikelyToken, NextTokens
from service.analysis.pairs import Pair
from service.analysis.pieces import Piece, pieces
from service.analysis.unread import Part, Unread, in_pieces
from service.engine import Condition, Model, Question, Site, numbers
from service.errors import NonFiniteActivation
from service.theory import kl_divergence

LIKELIEST = 10
"""Number of tokens in an answer."""


def next_tokens(
    model: Model, pairs: Sequence[Pair]
) -> Question[Unread[Sequence[Sequence[NextTokens]]]]:
    """Find the likeliest next tokens at each requested position of each pair."""
    site = last_site(model)
    runs = [
        prompt.run({site: pair.positions})
        for pair in pairs
        for prompt in (pair.with_context, pair.baseline)
    ]
    received = yield runs
    kinds = (received[::2], received[1::2])
    rows = [position for pair in pairs for position in pair.positions]

    def form(piece: Piece) -> Part:
        logits, condition = unembedded(model, piece.stacked(kinds, site.point)[0, 0])

        def finish(host: Sequence[Tensor]) -> list[list[NextTokens]]:
            ids, probabilities, divergence = map(numbers, host)
            top = [likeliest(model, *of_run) for of_run in zip(ids, probabilities, strict=True)]
            columns = (rows[piece.rows], *top, divergence)
            return [[NextTokens(*row) for row in zip(*columns, strict=True)]]

        tensors = [*most_likely(logits), kl_divergence(logits[0], logits[1])]
        return Part(tensors, finish, [condition])

    cut = pieces(model, [site.layer], len(rows), 2 * logits_cost(model))
    return (yield from in_pieces(cut, form, [len(pair.positions) for pair in pairs], received))


def last_site(model: Model) -> Site:
    """The residual stream after the last block, which the unembedding reads."""
    return Site(model.n_layers - 1, "resid_post")


def logits_cost(model: Model) -> int:
    """Multiplications and additions of the logits of one row."""
    return model.vocab_size * model.d_model


def unembedded(model: Model, stream: Tensor) -> tuple[Tensor, Condition]:
    """Logits of the stream after the last block, (kinds, rows, d_model) to (kinds, rows, vocab), at
    least float32.

    The condition is that none of them is NaN or infinite.
    """
    wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
    # Each kind of run has a product of its own, so equal runs have equal logits to the last bit.
    logits = torch.stack([model.logits(rows) for rows in wide.unbind()])
    error = NonFiniteActivation("The logits hold NaN or infinity.")
    return logits, Condition(torch.isfinite(logits).all(), error)


def most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and probabilities of the likeliest next tokens, (..., vocab) to (..., count) each."""
    top = logits.double().softmax(-1).topk(min(LIKELIEST, logits.shape[-1]), dim=-1)
    return top.indices, top.values


def likeliest(
    model: Model, ids: Sequence[Sequence[int]], probabilities: Sequence[Sequence[float]]
) -> list[tuple[LikelyToken, ...]]:
    """The likeliest next tokens of each row, from the numbers of `most_likely`."""
    token = model.tokenizer.token
    return [
        tuple(
            LikelyToken(id, token(id).text, probability)
            for id, probability in zip(*row, strict=True)
        )
        for row in zip(ids, probabilities, strict=True)
    ]
