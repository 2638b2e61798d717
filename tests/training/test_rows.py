"""The rows that the training sees."""

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


def test_a_list_of_tokens_asks_only_for_what_it_told() -> None:
    """What weighs most in a row of token lists follows the same separator as it did before."""
    separators, line_end = range(100, 4000), [7]
    for seed in range(50):
        ids, weights = token_lists(Random(seed), 96, 5000, separators, line_end)
        assert len(ids) == len(weights) == 96
        pairs = list(pairwise(ids))
        for place, pair in enumerate(pairs):
            if weights[place + 1] == RECALL:
                assert pair in pairs[:place]


def test_held_out_separators_separate_in_no_list_of_tokens(sampler: Sampler) -> None:
    """They are keys and values; nothing that separates or ends a pair is one of them."""
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
