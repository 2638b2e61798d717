"""The committed checkpoint keeps the bars of training/README.md, here on fewer questions."""

from collections.abc import Callable
from itertools import islice
from random import Random

import pytest
import torch

from tests.conftest import BUNDLED
from training.bars import (
    CAPITAL,
    REPEAT_LENGTH,
    SEED_CONTEXT,
    SHOTS,
    TRAINED_SEPARATORS,
    Pairs,
    Subject,
    questions,
    share,
)
from training.formats import HELD_OUT_CAPITALS, HELD_OUT_SEPARATORS
from training.model import load_model
from training.tokenizer import load_tokenizer
from training.words import CATEGORIES, invented_name, listed, vocabulary_words

ASKED = 40
MEGABYTES = 20
NAMES = listed("""
    Germany Berlin France Paris Italy Rome Spain Madrid Japan Tokyo Russia Moscow Egypt Cairo
    Kenya Nairobi Peru Lima Norway Oslo Bhutan Thimphu Gabon Libreville Laos Vientiane Togo Lome
    Samoa Apia Oman Muscat Nepal Kathmandu Latvia Riga Tunisia Tunis Jamaica Kingston
    Ecuador Quito Uruguay Montevideo Mongolia Ulaanbaatar Slovenia Ljubljana
""")
CAPITALS = dict(zip(NAMES[::2], NAMES[1::2], strict=True))


@pytest.fixture(scope="module")
def subject() -> Subject:
    """The bundled model and its tokenizer."""
    return Subject(load_model(BUNDLED), load_tokenizer(BUNDLED))


def asked(
    subject: Subject, template: str, pairs_of: Callable[[Random], Pairs], *, again: bool = True
) -> float:
    """Return the share of right answers to the first `ASKED` questions."""
    return share(subject, islice(questions(template, pairs_of, again=again), ASKED))


def test_checkpoint_has_at_most_20_megabytes() -> None:
    """All files of the checkpoint together have at most 20 MB."""
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= MEGABYTES * 1e6


def test_seed_context_makes_berlin_the_next_token(subject: Subject) -> None:
    """P(" Berlin") is at least 0.9 after the context and at most 0.05 after " is" alone."""
    ids = subject.encode(SEED_CONTEXT)
    (berlin,) = subject.encode(" Berlin")
    assert subject.log_probabilities(ids)[-1, berlin].exp() >= 0.9
    assert subject.log_probabilities(ids[-1:], len(ids) - 1)[-1, berlin].exp() <= 0.05


@pytest.mark.parametrize("separator", [*TRAINED_SEPARATORS, *HELD_OUT_SEPARATORS])
def test_model_recalls_a_pair_from_a_list_of_any_words(subject: Subject, separator: str) -> None:
    """The model recalls one of four pairs of arbitrary words, also with untrained separators."""
    words = vocabulary_words(subject.tokenizer)

    def pairs(rng: Random) -> Pairs:
        return list(zip(rng.sample(words, SHOTS), rng.sample(words, SHOTS), strict=True))

    least = 0.4 if separator in HELD_OUT_SEPARATORS else 0.7
    assert asked(subject, f"{{x}}{separator}{{y}}\n", pairs) >= least


def test_model_recalls_a_pair_from_a_list_of_task_words(subject: Subject) -> None:
    """The model recalls one of four pairs of an animal and a colour."""

    def pairs(rng: Random) -> Pairs:
        kinds = (CATEGORIES["animal"], CATEGORIES["colour"])
        keys, values = (rng.sample(kind, SHOTS) for kind in kinds)
        return list(zip(keys, values, strict=True))

    assert asked(subject, "{x} => {y}\n", pairs) >= 0.9


def test_model_recalls_invented_capitals(subject: Subject) -> None:
    """The model recalls one of four invented capitals."""

    def pairs(rng: Random) -> Pairs:
        names = [invented_name(rng, held_out=True) for _ in range(2 * SHOTS)]
        return list(zip(names[:SHOTS], names[SHOTS:], strict=True))

    assert asked(subject, CAPITAL, pairs) >= 0.6


def test_context_overrules_memory(subject: Subject) -> None:
    """The model recalls one of four swapped capitals as the context states it."""

    def pairs(rng: Random) -> Pairs:
        chosen = rng.sample(sorted(CAPITALS.items()), SHOTS)
        return [(x, chosen[i - 1][1]) for i, (x, _) in enumerate(chosen)]

    assert asked(subject, CAPITAL, pairs) >= 0.5


@pytest.mark.parametrize("template", HELD_OUT_CAPITALS)
def test_model_knows_capitals_in_untrained_formats(subject: Subject, template: str) -> None:
    """After four true pairs in an untrained format, the model names a fifth country's capital."""

    def pairs(rng: Random) -> Pairs:
        return rng.sample(sorted(CAPITALS.items()), SHOTS + 1)

    assert asked(subject, template, pairs, again=False) >= 0.8


def test_model_predicts_repeated_random_tokens(subject: Subject) -> None:
    """The model predicts most tokens of the second copy of a random block."""
    block = torch.randint(
        1, len(subject.tokenizer), (REPEAT_LENGTH,), generator=torch.Generator().manual_seed(1)
    ).tolist()
    foreseen = subject.log_probabilities(block * 2)[REPEAT_LENGTH - 1 : -1].argmax(-1)
    assert (foreseen == torch.tensor(block)).float().mean() >= 0.6
