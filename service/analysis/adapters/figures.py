"""The figures of a static adapter: how much of the context's effect it recovers, and what it harms.

Everything is KL in nats between distributions of the next token, in float64, because float32 shows
a false KL of 2e-7. Shares are pooled over queries, because a mean of ratios means nothing where KL
is small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from schemas.adapters import Collateral, Figures, Rivals, TokenFigures
from schemas.common import UNSET, Unset
from service.analysis.next_tokens import logits_cost, unembedded
from service.analysis.pieces import conditions_of, most_entries, slices
from service.engine import Activations, Model, Question, fetch, numbers
from service.theory import kl_divergence

LEAST_HELD_OUT = 8
"""Held-out queries below which no figures are given."""
LEAST_KL = 1e-9
"""Nats per query below which a denominator is rounding."""


@dataclass(frozen=True)
class Gap:
    """The distance of runs from the runs with context, at each answer token of each query.

    Args:
        kl: KL(with context ‖ run), a list of answer tokens for each query.
        same: Whether the likeliest token is that of the run with context, in the same order.
    """

    kl: Sequence[Sequence[float]]
    same: Sequence[Sequence[bool]]

    def kl_at(self, token: int) -> list[float]:
        """KL of each query at an answer token."""
        return [row[token] for row in self.kl]

    def part(self, start: int, stop: int | None) -> Gap:
        """The queries from `start` to `stop`."""
        return Gap(self.kl[start:stop], self.same[start:stop])

    def top_1(self, token: int = 0) -> float:
        """Share of the queries whose likeliest token is that of the run with context."""
        return fmean(row[token] for row in self.same)


def gaps(model: Model, with_context: Tensor, others: Sequence[Tensor]) -> Question[list[Gap]]:
    """Compare runs with the runs with context.

    Args:
        model: The resident model.
        with_context: The stream after the last block, (queries, answer tokens, d_model).
        others: The same of each kind of other run.
    """
    queries, tokens, width = with_context.shape

    def form(logits: Tensor) -> list[Tensor]:
        truth, *rest = logits
        best = truth.argmax(-1)
        return [
            torch.stack([kl_divergence(truth, other) for other in rest]),
            torch.stack([other.argmax(-1) == best for other in rest]),
        ]

    flat = torch.stack([with_context, *others]).view(-1, queries * tokens, width)
    kl, same = yield from in_slices(model, flat, form)
    sizes = len(others), queries, tokens
    found = zip(numbers(kl.view(sizes)), numbers(same.view(sizes)), strict=True)
    return [Gap(*one) for one in found]


def constant_answer(model: Model, streams: Tensor) -> Question[Tensor]:
    """Logarithm of the mean distribution of the next token over rows (rows, d_model): (vocab)."""
    total = torch.zeros(model.vocab_size, dtype=torch.float64, device=streams.device)
    for part in _slices(model, len(streams), 1):
        logits, _ = unembedded(model, streams[None, part])
        total += logits[0].double().softmax(-1).sum(0)
        yield ()
    return (total / len(streams)).clamp_min(torch.finfo(torch.float64).tiny).log()


def constant_gap(model: Model, with_context: Tensor, constant: Tensor) -> Question[list[float]]:
    """KL(with context ‖ constant answer) of each row of the stream after the last block.

    Args:
        model: The resident model.
        with_context: (queries, d_model).
        constant: The result of `constant_answer`.
    """
    (kl,) = yield from in_slices(
        model, with_context[None], lambda logits: [kl_divergence(logits, constant)]
    )
    found: list[float] = numbers(kl[0])
    return found


def figures_of(
    none: Gap, patched: Gap, constant: Sequence[float], free_run: float | Unset = UNSET
) -> Figures:
    """The figures of a patch on some queries.

    Args:
        none: The unpatched runs against the runs with context.
        patched: The patched ones, at the same answer tokens of the same queries.
        constant: KL(with context ‖ constant answer) of each query.
        free_run: Share of equal tokens where each run reads its own tokens.
    """
    before, after = none.kl_at(0), patched.kl_at(0)
    each = [1 - new / old for new, old in zip(after, before, strict=True) if old >= LEAST_KL]
    return Figures(
        n=len(before),
        kl_none=fmean(before),
        kl_patched=fmean(after),
        recovered=recovered(after, before),
        recovered_median=median(each) if each else None,
        beyond_constant=beyond_constant(after, constant, before),
        top_1=patched.top_1(),
        top_1_none=none.top_1(),
        teacher_forced=[
            TokenFigures(
                token, recovered(patched.kl_at(token), none.kl_at(token)), patched.top_1(token)
            )
            for token in range(len(none.kl[0]))
        ],
        free_run=free_run,
    )


def rivals_of(none: Gap, mean_output: Gap, random: Gap, constant: Sequence[float]) -> Rivals:
    """The figures of simpler patches on the same queries."""
    before, mean = none.kl_at(0), mean_output.kl_at(0)
    return Rivals(
        constant=recovered(constant, before),
        mean_output=recovered(mean, before),
        mean_output_beyond_constant=beyond_constant(mean, constant, before),
        random=recovered(random.kl_at(0), before),
    )


def collateral_of(
    model: Model, none: Tensor, patched: Tensor, with_context: Tensor, texts: int
) -> Question[Collateral]:
    """What a patch changes on unrelated texts, from the stream after the last block.

    Args:
        model: The resident model.
        none: All rows of all texts without a patch, (rows, d_model).
        patched: The same with the patch.
        with_context: The same after the context.
        texts: Number of texts.
    """
    kl, own = yield from in_slices(
        model,
        torch.stack([none, patched, with_context]),
        lambda logits: [kl_divergence(logits[0], other) for other in logits[1:]],
    )
    changed: list[float] = numbers(kl)
    itself: list[float] = numbers(own)
    return Collateral(fmean(changed), max(changed), fmean(itself), texts)


def recovered(after: Sequence[float], before: Sequence[float]) -> float | None:
    """1 − Σafter / Σbefore, or None where the denominator is rounding."""
    total = sum(before)
    return 1 - sum(after) / total if total >= LEAST_KL * len(before) else None


def beyond_constant(
    after: Sequence[float], constant: Sequence[float], before: Sequence[float]
) -> float | None:
    """1 − Σafter / min(Σconstant, Σbefore): what is left when the answer's format is set aside."""
    return recovered(after, min(constant, before, key=sum))


def in_slices(
    model: Model,
    streams: Tensor,
    form: Callable[[Tensor], Sequence[Tensor]],
    received: Sequence[Activations] = (),
) -> Question[Any]:
    """What `form` makes of the logits (kinds, rows, vocab) of a few rows at a time, on the host.

    The logits of all rows are never held: 400 kB a row in float64 with GPT-2's vocabulary.

    Args:
        model: The resident model.
        streams: (kinds, rows, d_model).
        form: Returns tensors whose last dimension is that of the rows.
        received: The activations that the streams are formed from.
    """
    found: list[Sequence[Tensor]] = []
    conditions = list(conditions_of(received))
    for part in _slices(model, streams.shape[1], len(streams)):
        logits, condition = unembedded(model, streams[:, part])
        found.append(form(logits))
        conditions.append(condition)
        yield ()
    return fetch([torch.cat(columns, -1) for columns in zip(*found, strict=True)], conditions)


def _slices(model: Model, rows: int, kinds: int) -> list[slice]:
    return slices(rows, most_entries(model, kinds * logits_cost(model)))
