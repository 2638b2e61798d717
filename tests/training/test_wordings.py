"""The composed sentences of capitals, and what they leave to the bars."""

import re
from random import Random

from training.formats import HELD_OUT_CAPITALS, RELATIONS, noun_templates
from training.wordings import KEPT, WORDS, composed

COMPOSED = [composed(Random(seed)) for seed in range(20_000)]


def words(text: str) -> set[str]:
    """The words of a text in lower case."""
    return set(re.findall(r"[a-z]+", text.lower()))


def test_a_composed_sentence_has_the_country_first_and_no_other_slot() -> None:
    """`{x}` stands once, then `{y}` once, and every other slot is filled."""
    for text in COMPOSED:
        assert re.findall(r"\{\w+\}", text) == ["{x}", "{y}"], text


def test_composed_sentences_are_many() -> None:
    """Of 20,000 sentences, hardly any two are the same."""
    assert len(set(COMPOSED)) > 0.99 * len(COMPOSED)


def test_some_composed_sentences_name_the_capital_without_the_word() -> None:
    """The word "capital" is in many sentences and missing in many."""
    share = sum("capital" in text for text in COMPOSED) / len(COMPOSED)
    assert 0.3 < share < 0.8


def test_the_words_of_the_held_out_sentence_are_in_no_wording() -> None:
    """Each word of `KEPT` is in the bars' sentence and in none that tells a capital."""
    trained = [*COMPOSED, *RELATIONS["capital"], *RELATIONS["state capital"]]
    trained += noun_templates("capital")
    assert all(set(KEPT) <= words(text) for text in HELD_OUT_CAPITALS if "~" not in text)
    for text in trained:
        assert not words(text) & set(KEPT), text
        assert "its capital," not in text


def test_every_slot_has_words() -> None:
    """A slot of the parts is a category or a list of days, months or ordinals."""
    assert {"job", "place", "food", "animal", "day", "month"} <= set(WORDS)
