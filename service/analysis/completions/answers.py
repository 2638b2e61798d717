"""The answer of a completion, and the events of its stream, formed token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from schemas.common import UNSET
from schemas.completions import (
    CapturedActivations,
    Choice,
    Completion,
    FinishReason,
    Logprobs,
    TokenAgreement,
    Usage,
)
from service.analysis.completions.texts import GrowingText, token_text
from service.analysis.pairs import Prompt
from service.engine import Model, Site


@dataclass(frozen=True)
class Scores:
    """The log-probability of a token, and the likeliest tokens with theirs, the likeliest first."""

    log_probability: float
    top: Sequence[tuple[int, float]]


@dataclass(frozen=True, eq=False)
class Generated:
    """One generated token, with what was read beside it.

    Args:
        id: The token.
        scores: Its log-probabilities, if they are reported.
        agreement: Its comparison with the run with context, if it is made.
        activations: Captured rows, (1, width) or (1) each.
    """

    id: int
    scores: Scores | None
    agreement: TokenAgreement | None
    activations: Sequence[Tensor]


@dataclass(frozen=True)
class _Scored:
    """An entry of `Logprobs`."""

    token: str
    log_probability: float | None
    top: Mapping[str, float] | None
    offset: int


@dataclass(eq=False)
class Answering:
    """A completion that grows.

    Args:
        model: The resident model.
        empty: The completion without choices, with the fields that an answer has at its beginning.
        prompt: The beginning of the generating run. Its query is the request's prompt.
        stops: Texts that end the completion.
        echo: Whether the completion's text begins with the prompt.
        text: The prompt's text; None: it was given as ids.
        logprobs: Number of likeliest tokens to report; None: no log-probabilities.
        has_agreement: Whether tokens are compared.
        sites: The captured sites.
        shows_usage: Whether events have the field `usage`.
    """

    model: Model
    empty: Completion[Tensor]
    prompt: Prompt
    stops: Sequence[str]
    echo: bool
    text: str | None
    logprobs: int | None
    has_agreement: bool
    sites: Sequence[Site]
    shows_usage: bool
    finish_reason: FinishReason | None = None
    _generated: list[Generated] = field(default_factory=list)
    _scored: list[_Scored] = field(default_factory=list)
    _pieces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._text = GrowingText(self.model.tokenizer, self.stops)
        self._ids = [int(id) for id in self.prompt.ids[-self.prompt.query_length :]]
        spelled, self._before = self._text.begin(self._ids)
        if self.text is not None:
            # The text itself: tokens may spell a space that the tokenizer put before it.
            starts = [start for start, _ in self.model.tokenizer.offsets(self.text)]
            spelled = self.text
            self._before = [0] * (len(self._ids) - len(starts)) + starts
        self._echoed = spelled if self.echo else ""
        self._text.characters = len(self._echoed)

    def score_prompt(self, scores: Sequence[Scores]) -> None:
        """Add the log-probabilities of the prompt's tokens, from those of the second token of the
        run on."""
        rows = zip(self._ids, self._before, [None, *scores][-len(self._ids) :], strict=True)
        self._scored += [self._entry(id, found, offset) for id, offset, found in rows]

    def add(self, token: Generated, last: bool) -> Completion[Tensor]:
        """Add a token, and form its event.

        Args:
            token: The token.
            last: Whether no token may follow.
        """
        first, offset = not self._generated, self._text.characters
        ends = token.id in self.model.end_tokens
        piece = self._echoed if first else ""
        piece += "" if ends else self._text.add(token.id)
        if ends or self._text.stopped:
            self.finish_reason = "stop"
        elif last:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            piece += self._text.end()
            if self._text.stopped:
                self.finish_reason = "stop"
        scored = [*self._scored] if first else []
        if token.scores is not None:
            scored.append(self._entry(token.id, token.scores, offset))
            self._scored.append(scored[-1])
        self._generated.append(token)
        self._pieces.append(piece)
        whole = self._completion(piece, [token], scored)
        if first:
            return whole
        return replace(whole, resident_model=UNSET, seed=UNSET, one_set_of_weights=UNSET)

    def whole(self) -> Completion[Tensor]:
        """The completion with all its tokens."""
        whole = self._completion("".join(self._pieces), self._generated, self._scored)
        return replace(whole, usage=self.usage)

    @property
    def usage(self) -> Usage:
        """Numbers of tokens so far."""
        prompt, count = len(self.prompt.ids), len(self._generated)
        return Usage(prompt, count, prompt + count)

    def _completion(
        self, text: str, generated: Sequence[Generated], scored: Sequence[_Scored]
    ) -> Completion[Tensor]:
        logprobs = None if self.logprobs is None else _logprobs(scored, self.logprobs)
        agreement = [one.agreement for one in generated if one.agreement is not None]
        columns = zip(*(one.activations for one in generated), strict=True)
        activations = [
            CapturedActivations(site.layer, site.point, torch.cat(rows))
            for site, rows in zip(self.sites, columns, strict=True)
        ]
        return replace(
            self.empty,
            choices=[Choice(text, 0, self.finish_reason, logprobs)],
            usage=None if self.shows_usage else UNSET,
            tokens=[one.id for one in generated],
            agreement=agreement if self.has_agreement else UNSET,
            activations=activations if self.sites else UNSET,
        )

    def _entry(self, id: int, scores: Scores | None, offset: int) -> _Scored:
        spelled = self.model.tokenizer.token
        own = token_text(spelled(id))
        if scores is None:
            return _Scored(own, None, None, offset)
        top: dict[str, float] = {}
        for other, value in (*scores.top, (id, scores.log_probability)):
            # Two tokens may be spelled alike; the likelier one comes first.
            top.setdefault(token_text(spelled(other)), value)
        return _Scored(own, scores.log_probability, top, offset)


def _logprobs(scored: Sequence[_Scored], count: int) -> Logprobs:
    return Logprobs(
        [one.token for one in scored],
        [one.log_probability for one in scored],
        [one.top for one in scored] if count else None,
        [one.offset for one in scored],
    )
