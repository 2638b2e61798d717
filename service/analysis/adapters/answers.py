"""Greedy answers: the likeliest token, again and again, after several prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from service.analysis.next_tokens import last_site, logits_cost, unembedded
from service.analysis.pairs import Prompt
from service.analysis.pieces import conditions_of, most_entries, slices
from service.engine import Condition, Fixed, History, Model, Question, fetch, numbers

Answer = tuple[int, ...]


def answered(prompt: Prompt, answer: Sequence[int]) -> Prompt:
    """The prompt with an answer behind its query, at the positions that follow."""
    end = int(prompt.positions[-1]) + 1
    return replace(
        prompt,
        ids=(*map(int, prompt.ids), *answer),
        positions=(*map(int, prompt.positions), *range(end, end + len(answer))),
        query_length=prompt.query_length + len(answer),
    )


def greedy_answers(
    model: Model,
    prompts: Sequence[Prompt],
    count: int,
    dtype: torch.dtype,
    patch: Fixed | None = None,
) -> Question[list[Answer]]:
    """Decode `count` tokens after each prompt. End tokens do not end an answer.

    Args:
        model: The resident model.
        prompts: The prompts. Those without a patch share the rows before their queries.
        count: Number of tokens of an answer.
        dtype: The dtype of the runs.
        patch: Changed weights; None: the resident ones.
    """
    site = last_site(model)
    # A patched run shares no rows. No row reads the last token of an answer.
    shared = [
        0 if patch is not None else len(prompt.ids) - prompt.query_length for prompt in prompts
    ]
    histories = [
        History(begins, len(prompt.ids) - begins + count - 1)
        for prompt, begins in zip(prompts, shared, strict=True)
    ]
    answers: list[Answer] = [()] * len(prompts)
    most = most_entries(model, logits_cost(model))
    for _ in range(count):
        known = [answered(*one) for one in zip(prompts, answers, strict=True)]
        received = yield [
            replace(
                prompt.run({site: (prompt.query_length - 1,)}, dtype), patch=patch, history=history
            )
            for prompt, history in zip(known, histories, strict=True)
        ]
        streams = torch.cat([run[site] for run in received])
        likeliest, conditions = [], list[Condition](conditions_of(received))
        for part in slices(len(streams), most):
            logits, condition = unembedded(model, streams[None, part])
            likeliest.append(logits[0].argmax(-1))
            conditions.append(condition)
            yield ()
        found = numbers(fetch([torch.cat(likeliest)], conditions)[0])
        answers = [(*answer, token) for answer, token in zip(answers, found, strict=True)]
    return answers
