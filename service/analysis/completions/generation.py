"""The question of a completion: one run per token, or two with a patch that follows a context.

Tokens are chosen from the generating run: the patched run if there is a patch. The run with context
reads the same tokens, so each token can be compared.

Under a recomputed patch, ΔW and Δh are formed at each token so that the last row of the generating
run reads as the last row of the run with context, block by block (arXiv 2511.17864, Algorithm 1).
With `all` they act on the whole text, which is run again. With `new` they act on the last row
alone, behind keys and values that earlier patches left: the update of a row is exact for any
stream, so the row still reads as that of the run with context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from schemas.activations import Reduce
from schemas.completions import Completion, Recompute, TokenAgreement
from service.analysis.activations import REDUCTIONS
from service.analysis.completions.answers import Answering, Generated, Scores
from service.analysis.next_tokens import last_site, unembedded
from service.analysis.pairs import Prompt
from service.analysis.pieces import conditions_of
from service.engine import (
    Activations,
    Condition,
    Fixed,
    Follow,
    History,
    Model,
    Question,
    Run,
    Site,
    copied,
    fetch,
    numbers,
)
from service.errors import NoRowsPatched
from service.theory import StaticUpdate, choose, gumbel_noise, kl_divergence

PROMPT_ROWS = 32
"""Rows of a prompt whose logits are formed at a time."""

Emit = Callable[[Completion[Tensor]], None]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, as in `choose`."""

    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True, eq=False)
class Generation:
    """The options of a generation.

    Args:
        prompt: The beginning of the generating run.
        context: The beginning of the run with context, if there is one.
        patch: How a patch is recomputed, or the updates of an adapter by layer; None: no patch.
        max_tokens: Maximum number of tokens.
        sampling: How tokens are chosen.
        agreement: Whether each token is compared with the run with context.
        logprobs: Number of likeliest tokens to report; None: no log-probabilities.
        scores_prompt: Whether the log-probabilities of the prompt's tokens are reported too.
        sites: The captured sites.
        reduce: How a captured row is reduced.
    """

    prompt: Prompt
    context: Prompt | None
    patch: Recompute | Mapping[int, StaticUpdate] | None
    max_tokens: int
    sampling: Sampling
    agreement: bool
    logprobs: int | None
    scores_prompt: bool
    sites: Sequence[Site]
    reduce: Reduce

    @property
    def kind(self) -> Literal["all", "new", "adapter", "none"]:
        """The kind of patch."""
        if isinstance(self.patch, str):
            return self.patch
        return "none" if self.patch is None else "adapter"


def generate(
    model: Model, wanted: Generation, answer: Answering, emit: Emit | None
) -> Question[Completion[Tensor]]:
    """Generate a completion.

    Args:
        model: The resident model.
        wanted: The options of the generation.
        answer: Forms the answer.
        emit: Receives an event for each token; None: there are no events.

    Raises:
        NoRowsPatched: The patch acted on no row.
    """
    tokens: list[int] = []
    lanes = _Lanes(model, wanted)
    while answer.finish_reason is None:
        runs = lanes.runs(tokens)
        received = yield runs
        if wanted.patch is not None and not received[0].patched_rows:
            raise NoRowsPatched("The patch acted on no row of the run.")
        if wanted.scores_prompt and not tokens:
            answer.score_prompt((yield from _prompt_scores(model, wanted, received[0])))
        token = _next_token(model, wanted, received, len(tokens))
        tokens.append(token.id)
        event = answer.add(token, len(tokens) == wanted.max_tokens)
        if emit is not None:
            emit(event)
    return answer.whole()


class _Lanes:
    """The runs of each step: the generating one, and the one with context if it is read."""

    def __init__(self, model: Model, wanted: Generation) -> None:
        self._wanted = wanted
        self._last = last_site(model)
        self._fixed = None if isinstance(wanted.patch, str | None) else Fixed(wanted.patch)
        count, rows = wanted.max_tokens, len(wanted.prompt.ids)
        # Under a patch no row has the keys and values of another request.
        shared = rows - 1 if wanted.patch is None else 0
        self._own = History(shared, rows - shared + count - 1) if wanted.kind != "all" else None
        read = wanted.context
        self._behind = None if read is None else History(len(read.ids) - 1, count)

    def runs(self, tokens: Sequence[int]) -> list[Run]:
        """The runs whose last rows give the next token."""
        wanted = self._wanted
        sites = (self._last, *wanted.sites)
        context = None
        if wanted.context is not None:
            context = _grown(wanted.context, tokens, [self._last], history=self._behind)
        patch: Follow | Fixed | None = self._fixed
        if isinstance(wanted.patch, str):
            assert context is not None
            row = len(wanted.prompt.ids) + len(tokens) - 1
            patch = Follow(context, len(context.tokens) - 1, row)
        whole = wanted.scores_prompt and not tokens
        generating = _grown(wanted.prompt, tokens, sites, patch, self._own, whole=whole)
        return [generating, context] if context is not None and wanted.agreement else [generating]


def _grown(
    prompt: Prompt,
    tokens: Sequence[int],
    sites: Sequence[Site],
    patch: Follow | Fixed | None = None,
    history: History | None = None,
    whole: bool = False,
) -> Run:
    """A prompt with the tokens after it. It reads its last row, or all rows."""
    ids = (*prompt.ids, *tokens)
    after = int(prompt.positions[-1]) + 1
    return Run(
        ids,
        (*prompt.positions, *range(after, after + len(tokens))),
        dict.fromkeys(sites, range(len(ids)) if whole else [len(ids) - 1]),
        patch=patch,
        trunk=len(prompt.ids) - 1,
        history=history,
    )


def _next_token(
    model: Model, wanted: Generation, received: Sequence[Activations], step: int
) -> Generated:
    """Choose the next token from the last rows of the runs, the generating one first."""
    stream = torch.stack([read[last_site(model)][-1:] for read in received])
    logits, condition = unembedded(model, stream)
    logits = logits[:, 0]
    noise = None
    if wanted.sampling.temperature > 0.0:
        noise = gumbel_noise(wanted.sampling.seed, step, logits.shape[-1], logits.device)
    chosen = choose(logits, wanted.sampling.temperature, wanted.sampling.top_p, noise)
    tensors = [chosen]
    if wanted.logprobs is not None:
        tensors += _scores(logits[:1], chosen[:1], wanted.logprobs)
    if wanted.agreement:
        log_p = logits[1].double().log_softmax(-1).topk(2).values
        tensors.append(torch.stack([kl_divergence(logits[1], logits[0]), log_p[0] - log_p[1]]))
    reduce = REDUCTIONS[wanted.reduce]
    tensors += [reduce(received[0][site][-1:]) for site in wanted.sites]
    host = iter(fetch(tensors, [*conditions_of(received), condition]))
    ids: list[int] = numbers(next(host))
    scores, agreement = None, None
    if wanted.logprobs is not None:
        (scores,) = _scores_of([next(host) for _ in range(3)])
    if wanted.agreement:
        kl, margin = numbers(next(host))
        agreement = TokenAgreement(ids[0], ids[0] == ids[1], kl, margin, received[0].patched_rows)
    return Generated(ids[0], scores, agreement, tuple(host))


def _prompt_scores(model: Model, wanted: Generation, read: Activations) -> Question[list[Scores]]:
    """The scores of each token of the prompt but the first, from the rows before them."""
    rows = read[last_site(model)][:-1]
    following = copied(torch.tensor(wanted.prompt.ids[1:]), rows.device)
    tensors: list[Tensor] = []
    conditions: list[Condition] = [*read.conditions]
    for start in range(0, len(rows), PROMPT_ROWS):
        here = slice(start, start + PROMPT_ROWS)
        logits, condition = unembedded(model, rows[None, here])
        tensors += _scores(logits[0], following[here], wanted.logprobs or 0)
        conditions.append(condition)
        yield ()
    host = fetch(tensors, conditions)
    return [one for i in range(0, len(host), 3) for one in _scores_of(host[i : i + 3])]


def _scores(logits: Tensor, ids: Tensor, count: int) -> list[Tensor]:
    """The log-probability of each id, (rows), and the likeliest ids with theirs, (rows, count)."""
    log_p = logits.double().log_softmax(-1)
    top = log_p.topk(min(count, log_p.shape[-1]), dim=-1)
    return [log_p.gather(-1, ids[:, None])[:, 0], top.indices, top.values]


def _scores_of(host: Sequence[Tensor]) -> list[Scores]:
    return [
        Scores(own, tuple(zip(ids, values, strict=True)))
        for own, ids, values in zip(*map(numbers, host), strict=True)
    ]
