"""Rows of tokens to train on: natural text, tasks, and random tokens repeated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from training.tasks import FORM, UNKNOWN, Document, World, document

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]
Mix = Mapping[str, float]
"""The shares of the rows that are `natural`, of `tasks`, and `repeats`."""


@dataclass(frozen=True)
class Sampler:
    """Every batch of the training, each a function of its step, its mix and its rows' length.

    Args:
        text: the natural text, `(tokens,)`.
        tokenizer: of the text, for the tasks.
        world: what the tasks are about.
        seed: of the training.
    """

    text: Ids
    tokenizer: PreTrainedTokenizerFast
    world: World
    seed: int

    def batch(self, step: int, rows: int, length: int, mix: Mix) -> tuple[Ids, Weights]:
        """Tokens and the weights of each in the loss, both `(rows, length)`."""
        seeds = [f"{self.seed}/{length}/{step}/{row}" for row in range(rows)]
        ids, weights = zip(*(self.row(Random(seed), length, mix) for seed in seeds), strict=True)
        return np.array(ids, np.int64), np.array(weights, np.float32)

    def row(self, rng: Random, length: int, mix: Mix) -> tuple[Sequence[int], Sequence[float]]:
        """One row of a kind drawn from the mix."""
        kind = rng.choices(list(mix), weights=list(mix.values()))[0]
        if kind == "natural":
            start = rng.randrange(len(self.text) - length)
            return self.text[start : start + length].tolist(), [FORM] * length
        if kind == "tasks":
            return self._tasks(rng, length)
        return repeats(rng, length, len(self.tokenizer))

    def _tasks(self, rng: Random, length: int) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            more, heavy = encode(document(rng, self.world), self.tokenizer)
            ids += [*more, 0]
            weights += [*heavy, UNKNOWN]
        return ids[:length], weights[:length]


def encode(pieces: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[float]]:
    """The tokens of a document, each with the weight of the piece that its last character is in."""
    weight_at = [piece.weight for piece in pieces for _ in piece.text]
    encoding = tokenizer.backend_tokenizer.encode("".join(piece.text for piece in pieces))
    return encoding.ids, [weight_at[end - 1] for _, end in encoding.offsets]


def repeats(rng: Random, length: int, vocabulary: int) -> tuple[list[int], list[float]]:
    """Random chunks of tokens drawn again and again: one chunk over and over, or several mixed.

    A chunk's first token cannot be known; its others can from the second time on.
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
