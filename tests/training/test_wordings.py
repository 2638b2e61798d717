"""The composed sentences about capitals, and the words that they must not contain."""

import re
from random import Random

from training.formats import HELD_OUT_CAPITALS, RELATIONS, noun_templates
from training.wordings import KEPT, WORDS, composed

COMPOSED = [composed(Random(seed)) for seed in range(20_000)]


def words(text: str) -> set[str]:
    """Return the words of a text in lower case."""
    return set(re.findall(r"[a-z]+", text.lower()))


def test_composed_sentence_has_the_slots_x_then_y() -> None:
    """A sentence has `{x}` once, then `{y}` once, and no other slot."""
    for text in COMPOSED:
        assert re.findall(r"\{\w+\}", text) == ["{x}", "{y}"], text


def test_composed_sentences_rarely_repeat() -> None:
    """More than 99 % of 20,000 sentences are different."""
    assert len(set(COMPOSED)) > 0.99 * len(COMPOSED)


def test_some_composed_sentences_name_the_capital_without_the_word() -> None:
    """Between 30 % and 80 % of the sentences contain the word "capital"."""
    share = sum("capital" in text for text in COMPOSED) / len(COMPOSED)
    assert 0.3 < share < 0.8


def test_no_wording_contains_a_word_kept_for_the_bars() -> None:
    """Each word of `KEPT` is in the bars' sentence and in no other sentence about a capital."""
    trained = [*COMPOSED, *RELATIONS["capital"], *RELATIONS["state capital"]]
    trained += noun_templates("capital")
    assert all(set(KEPT) <= words(text) for text in HELD_OUT_CAPITALS if "~" not in text)
    for text in trained:
        assert not words(text) & set(KEPT), text
        assert "its capital," not in text


def test_every_slot_has_words() -> None:
    """Every slot of the parts has a category, or a list of days, months or ordinals."""
    assert {"job", "place", "food", "animal", "day", "month"} <= set(WORDS)
