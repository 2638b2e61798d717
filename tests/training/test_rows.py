"""The rows of training tokens."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2TokenizerFast

from training.formats import HELD_OUT_SEPARATORS
from training.rows import Sampler, encode, repeats, token_lists
from training.tasks import FORM, RECALL, UNKNOWN, Piece, World

MIX = {"natural": 0.25, "tasks": 0.25, "token lists": 0.25, "repeats": 0.25}
WORLD = World(
    {"capital": {f"Land{i}": f"City{i}" for i in range(10)}},
    tuple(f"word{i}" for i in range(40)),
    ("§", "7", "ly"),
)


@pytest.fixture(scope="module")
def tokenizer() -> GPT2TokenizerFast:
    """A byte-level BPE with a few merges."""
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
    """A sampler whose natural text is the numbers 0 to 9999."""
    return Sampler(np.arange(10_000), tokenizer, WORLD, seed=5)


def test_token_has_the_weight_of_its_last_character(tokenizer: GPT2TokenizerFast) -> None:
    """The space before a value is part of the value's token, which has the value's weight."""
    pieces = [Piece("the capital of Germany is ", FORM), Piece("Berlin", RECALL), Piece(".", FORM)]
    ids, weights = encode(pieces, tokenizer)
    heavy = [token for token, weight in zip(ids, weights, strict=True) if weight == RECALL]
    assert tokenizer.decode(heavy) == " Berlin"


def test_batches_depend_on_step_and_length_only(sampler: Sampler) -> None:
    """Equal steps give equal batches; other steps and lengths give others."""
    ids, weights = sampler.batch(3, 4, 64, MIX)
    again, same = sampler.batch(3, 4, 64, MIX)
    assert (ids == again).all()
    assert (weights == same).all()
    assert ids.shape == weights.shape == (4, 64)
    assert (ids != sampler.batch(4, 4, 64, MIX)[0]).any()
    assert (ids[:, :32] != sampler.batch(3, 4, 32, MIX)[0]).any()


def test_weighted_tokens_of_a_repeated_row_occurred_before() -> None:
    """A token with weight follows the same token as earlier in the row."""
    for seed in range(50):
        ids, weights = repeats(Random(seed), 96, 5000)
        assert len(ids) == len(weights) == 96
        pairs = list(pairwise(ids))
        for place, pair in enumerate(pairs):
            if weights[place + 1] != UNKNOWN:
                assert pair in pairs[:place]


def test_recalled_tokens_of_a_token_list_occurred_before() -> None:
    """A token with the highest weight follows the same separator as earlier in the row."""
    separators, line_end = range(100, 4000), [7]
    for seed in range(50):
        ids, weights = token_lists(Random(seed), 96, 5000, separators, line_end)
        assert len(ids) == len(weights) == 96
        pairs = list(pairwise(ids))
        for place, pair in enumerate(pairs):
            if weights[place + 1] == RECALL:
                assert pair in pairs[:place]


def test_token_lists_use_no_held_out_separator(sampler: Sampler) -> None:
    """Held-out separators occur as keys and values, but never separate or end a pair."""
    texts = [form for text in HELD_OUT_SEPARATORS for form in (text.rstrip(), text.strip())]
    kept = {token for text in texts for token in sampler.tokenizer.encode(text)}
    met = set()
    for seed in range(100):
        ids, weights = sampler.row(Random(seed), 96, {"token lists": 1.0})
        between = {token for token, weight in zip(ids, weights, strict=True) if weight == FORM}
        assert between
        assert not kept & between
        met |= kept & set(ids)
    assert met == kept
