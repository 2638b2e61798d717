"""The formats of the tasks, and the formats that are kept for the bars."""

from random import Random

import pytest

from training.formats import (
    HELD_OUT_CAPITALS,
    HELD_OUT_SEPARATORS,
    RELATIONS,
    SEPARATORS,
    STORIES,
    is_held_out,
    list_template,
    noun_templates,
    odd_list_template,
)

WORDS = ("river", "stone")


def sentences() -> list[str]:
    """Return every sentence that a task can write, with its slots."""
    told = [text for texts in RELATIONS.values() for text in texts]
    told += [text for kinds in STORIES.values() for texts in kinds.values() for text in texts]
    return told + list(noun_templates("capital"))


def test_every_sentence_has_both_slots_once() -> None:
    """A template contains `{x}` and `{y}` exactly once each."""
    for text in sentences():
        assert text.count("{x}") == text.count("{y}") == 1, text


def test_there_are_more_than_a_hundred_sentences() -> None:
    """The tasks have at least 100 different templates."""
    assert len(set(sentences())) >= 100


def test_no_task_sentence_is_held_out() -> None:
    """No sentence of the tasks is a format of the capital bars."""
    for held_out in HELD_OUT_CAPITALS:
        assert held_out.strip() not in sentences()
    assert not any(is_held_out(text) for text in sentences())


def test_list_formats_contain_no_held_out_separator() -> None:
    """Ten thousand random list formats contain none of the separators of the bars."""
    rng = Random(0)
    for _ in range(10_000):
        template = list_template(rng, WORDS)
        assert not any(separator.strip() in template for separator in HELD_OUT_SEPARATORS)


def test_odd_list_formats_contain_no_held_out_separator() -> None:
    """No format contains a separator of the bars, even if the texts include it or its parts."""
    rng = Random(0)
    texts = (*(separator.strip() for separator in HELD_OUT_SEPARATORS), "§", ":", "=", ">", "ly")
    for _ in range(2000):
        template = odd_list_template(rng, texts)
        assert not any(separator.strip() in template for separator in HELD_OUT_SEPARATORS)


@pytest.mark.parametrize("separator", HELD_OUT_SEPARATORS)
def test_held_out_separators_are_not_trained(separator: str) -> None:
    """No trained separator is a separator of the bars."""
    assert separator not in SEPARATORS
    assert is_held_out(f"{{x}}{separator}{{y}}")
