"""Rows of training tokens: natural text, tasks, lists of random tokens, and repeated tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from training.formats import HELD_OUT_SEPARATORS
from training.tasks import FORM, RECALL, UNKNOWN, Document, World, document

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]
Mix = Mapping[str, float]
"""Shares of the kinds of rows: `natural`, `tasks`, `token lists` and `repeats`."""


@dataclass(frozen=True)
class Sampler:
    """Makes the batches of the training. A batch depends only on its step, mix, rows and length.

    Args:
        text: The natural text, `(tokens,)`.
        tokenizer: The tokenizer of the text; the tasks use it too.
        world: The facts and words of the tasks.
        seed: The seed of the training.
    """

    text: Ids
    tokenizer: PreTrainedTokenizerFast
    world: World
    seed: int

    def batch(self, step: int, rows: int, length: int, mix: Mix) -> tuple[Ids, Weights]:
        """Return the tokens and their weights in the loss, both `(rows, length)`."""
        seeds = [f"{self.seed}/{length}/{step}/{row}" for row in range(rows)]
        ids, weights = zip(*(self.row(Random(seed), length, mix) for seed in seeds), strict=True)
        return np.array(ids, np.int64), np.array(weights, np.float32)

    def row(self, rng: Random, length: int, mix: Mix) -> tuple[Sequence[int], Sequence[float]]:
        """Return one row of a kind drawn from the mix."""
        kind = rng.choices(list(mix), weights=list(mix.values()))[0]
        if kind == "natural":
            start = rng.randrange(len(self.text) - length)
            return self.text[start : start + length].tolist(), [FORM] * length
        if kind == "tasks":
            return self._documents(rng, length)
        if kind == "token lists":
            line_end = self.tokenizer.encode("\n")
            return token_lists(rng, length, len(self.tokenizer), self.separators, line_end)
        return repeats(rng, length, len(self.tokenizer))

    @cached_property
    def separators(self) -> list[int]:
        """The tokens that may separate lists: all except those kept for the bars."""
        texts = [form for text in HELD_OUT_SEPARATORS for form in (text.rstrip(), text.strip())]
        kept = {token for text in texts for token in self.tokenizer.encode(text)}
        return [token for token in range(1, len(self.tokenizer)) if token not in kept]

    def _documents(self, rng: Random, length: int) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            more, heavy = encode(document(rng, self.world), self.tokenizer)
            ids += [*more, 0]
            weights += [*heavy, UNKNOWN]
        return ids[:length], weights[:length]


def encode(pieces: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[float]]:
    """Return the tokens of a document. A token has the weight of its last character's piece."""
    weight_at = [piece.weight for piece in pieces for _ in piece.text]
    encoding = tokenizer.backend_tokenizer.encode("".join(piece.text for piece in pieces))
    return encoding.ids, [weight_at[end - 1] for _, end in encoding.offsets]


def repeats(rng: Random, length: int, vocabulary: int) -> tuple[list[int], list[float]]:
    """Return a row that repeats random chunks of tokens: one chunk, or several mixed.

    The first token of a chunk cannot be predicted. The others can, from the second time on.
    """
    count = rng.choice((1, 1, 2, 3, 4, 6, 8))
    longest = max(3, length // 3 // count)
    chunks = [
        [rng.randrange(1, vocabulary) for _ in range(rng.randint(2, longest))] for _ in range(count)
    ]
    seen: set[int] = set()
    ids: list[int] = []
    weights: list[float] = []
    while len(ids) < length:
        chosen = rng.randrange(count)
        chunk = chunks[chosen]
        ids += chunk
        weights += [UNKNOWN] + [FORM if chosen in seen else UNKNOWN] * (len(chunk) - 1)
        seen.add(chosen)
    return ids[:length], weights[:length]


def token_lists(
    rng: Random, length: int, vocabulary: int, separators: Sequence[int], line_end: Sequence[int]
) -> tuple[list[int], list[float]]:
    """Return a row of lists with arbitrary tokens as keys, values and separators.

    Only its place tells a separator from a key or a value.

    Args:
        rng: The source of all choices.
        length: The length of the row.
        vocabulary: Size of the vocabulary. Keys and values are uniform over its tokens except 0.
        separators: The tokens that may be between a key and its value, or after a pair.
        line_end: The tokens of a new line, which ends most pairs.
    """
    every = range(1, vocabulary)

    def drawn(tokens: Sequence[int]) -> list[int]:
        return rng.choices(tokens, k=rng.choice((1, 1, 1, 2)))

    ids: list[int] = []
    weights: list[float] = []
    while len(ids) < length:
        separator = drawn(separators)
        end = list(line_end) if rng.random() < 0.8 else drawn(separators)
        pairs = [(drawn(every), drawn(every)) for _ in range(rng.randint(2, 8))]
        asked = rng.choices(range(len(pairs)), k=rng.randint(2, 4 + 2 * len(pairs)))
        told: set[int] = set()
        for place in [*range(len(pairs)), *asked]:
            form, value = FORM if told else UNKNOWN, RECALL if place in told else UNKNOWN
            for part, weight in zip(
                (pairs[place][0], separator, pairs[place][1], end),
                (UNKNOWN, form, value, form),
                strict=True,
            ):
                ids += part
                weights += [weight] * len(part)
            told.add(place)
        ids.append(0)
        weights.append(UNKNOWN)
    return ids[:length], weights[:length]
