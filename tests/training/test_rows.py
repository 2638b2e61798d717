"""The rows that the training sees."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2TokenizerFast

from training.rows import Sampler, encode, repeats
from training.tasks import FORM, RECALL, UNKNOWN, Piece, World

MIX = {"natural": 0.3, "tasks": 0.4, "repeats": 0.3}
WORLD = World(
    {"capital": {f"Land{i}": f"City{i}" for i in range(10)}}, tuple(f"word{i}" for i in range(40))
)


@pytest.fixture(scope="module")
def tokenizer() -> GPT2TokenizerFast:
    """A byte-level BPE that knows a few merges."""
    byte_level = ByteLevelBPETokenizer()
    byte_level.train_from_iterator(
        ["the capital of Germany is Berlin. " * 20],
        vocab_size=300,
        min_frequency=1,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    return GPT2TokenizerFast(tokenizer_object=byte_level._tokenizer)


@pytest.fixture
def sampler(tokenizer: GPT2TokenizerFast) -> Sampler:
    """A sampler of the numbers 0 to 9999 as natural text."""
    return Sampler(np.arange(10_000), tokenizer, WORLD, seed=5)


def test_a_token_weighs_as_the_piece_of_its_last_character(tokenizer: GPT2TokenizerFast) -> None:
    """The space before a value belongs to the value's token and takes its weight."""
    pieces = [Piece("the capital of Germany is ", FORM), Piece("Berlin", RECALL), Piece(".", FORM)]
    ids, weights = encode(pieces, tokenizer)
    heavy = [token for token, weight in zip(ids, weights, strict=True) if weight == RECALL]
    assert tokenizer.decode(heavy) == " Berlin"


def test_batches_depend_on_step_and_length_only(sampler: Sampler) -> None:
    """A resumed run sees the batch that it would have seen; other steps and lengths see others."""
    ids, weights = sampler.batch(3, 4, 64, MIX)
    again, same = sampler.batch(3, 4, 64, MIX)
    assert (ids == again).all()
    assert (weights == same).all()
    assert ids.shape == weights.shape == (4, 64)
    assert (ids != sampler.batch(4, 4, 64, MIX)[0]).any()
    assert (ids[:, :32] != sampler.batch(3, 4, 32, MIX)[0]).any()


def test_what_weighs_in_a_repeated_row_was_seen_before() -> None:
    """A weighed token follows the same token as it did before in the row."""
    for seed in range(50):
        ids, weights = repeats(Random(seed), 96, 5000)
        assert len(ids) == len(weights) == 96
        pairs = list(pairwise(ids))
        for place, pair in enumerate(pairs):
            if weights[place + 1] != UNKNOWN:
                assert pair in pairs[:place]
