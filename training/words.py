"""Words of the synthetic tasks: closed lists, the whole vocabulary, and invented names."""

import calendar
import re
from random import Random
from zlib import crc32

from transformers import PreTrainedTokenizerFast


def listed(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


CATEGORIES: dict[str, tuple[str, ...]] = {
    name: listed(words)
    for name, words in {
        "animal": "dog cat horse cow sheep goat wolf bear fox lion tiger mouse rabbit eagle crow "
        "snake frog whale shark bee ant spider camel donkey duck goose",
        "colour": "red blue green yellow black white brown purple pink orange grey gold silver "
        "violet crimson",
        "food": "bread butter cheese apple pear plum grape lemon onion carrot potato rice soup "
        "cake honey salt pepper egg fish milk tea coffee wine",
        "tool": "hammer saw axe knife rope nail shovel ladder brush needle lamp clock key wheel "
        "bucket basket mirror bell drum",
        "place": "house garden river forest mountain village market church school tower bridge "
        "castle harbour island desert valley farm mill kitchen cellar",
        "job": "king queen farmer doctor teacher soldier sailor baker judge priest singer painter "
        "lawyer nurse hunter writer captain merchant",
        "body": "head hand foot arm leg eye ear nose mouth heart back neck knee finger tooth hair",
        "number": "one two three four five six seven eight nine ten eleven twelve twenty thirty "
        "forty fifty hundred thousand",
        "person": "Anna Tom Mary John Peter Sarah Paul Lucy James Emma David Helen George Alice "
        "Frank Ruth Henry Clara Simon Julia Martin Nora Oscar Laura Victor Maria Daniel Rosa",
    }.items()
}
DAYS = tuple(calendar.day_name)
MONTHS = tuple(calendar.month_name)[1:]
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
ORDINALS = listed("first second third fourth fifth sixth seventh eighth ninth tenth")
SENTENCE_WORDS = (*DAYS, *MONTHS, *ORDINALS, "capital", "currency", "language", "continent")
"""Further words that get a token of their own."""

ONSETS = listed("b br c ch d dr f g gr h j k kr l m n p pl r s sh st t th tr v w y z")
VOWELS = listed("a e i o u a e i o u ai ea ia oo")
CODAS = (*listed("n r l s t m nd rk"), *[""] * 8)
HELD_OUT_NAMES = 8
"""One invented name in this many is kept for the evaluation, chosen by its CRC-32."""


def invented_name(rng: Random, *, held_out: bool = False) -> str:
    """Return a capitalised name of two or three random syllables, held out or not."""
    while True:
        syllables = rng.choice((2, 2, 2, 3))
        name = "".join(
            rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables)
        ).capitalize()
        if (crc32(name.encode()) % HELD_OUT_NAMES == 0) == held_out:
            return name


def vocabulary_words(tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """Return every word of three or more letters that is one token after a space."""
    decoded = (tokenizer.decode([token]) for token in range(len(tokenizer)))
    return tuple(text[1:] for text in decoded if re.fullmatch(r" [A-Za-z]{3,}", text))


def vocabulary_texts(tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """Return the stripped text of every token that is printable and not empty."""
    decoded = (tokenizer.decode([token]).strip() for token in range(1, len(tokenizer)))
    return tuple(text for text in decoded if text and text.isprintable() and "\ufffd" not in text)
