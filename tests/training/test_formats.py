"""The formats of the tasks, and the ones that are kept for the bars."""

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
    """Every sentence that a task can write, with its slots."""
    told = [text for texts in RELATIONS.values() for text in texts]
    told += [text for kinds in STORIES.values() for texts in kinds.values() for text in texts]
    return told + list(noun_templates("capital"))


def test_every_sentence_has_both_slots_once() -> None:
    """A template holds `{x}` and `{y}` exactly once each."""
    for text in sentences():
        assert text.count("{x}") == text.count("{y}") == 1, text


def test_there_are_more_than_a_hundred_sentences() -> None:
    """The tasks have at least 100 different templates."""
    assert len(set(sentences())) >= 100


def test_no_task_sentence_is_held_out() -> None:
    """The formats of the capital bars are none of the sentences of the tasks."""
    for held_out in HELD_OUT_CAPITALS:
        assert held_out.strip() not in sentences()
    assert not any(is_held_out(text) for text in sentences())


def test_list_formats_never_hold_a_held_out_separator() -> None:
    """Ten thousand made-up list formats hold none of the separators of the bars."""
    rng = Random(0)
    for _ in range(10_000):
        template = list_template(rng, WORDS)
        assert not any(separator.strip() in template for separator in HELD_OUT_SEPARATORS)


def test_a_separator_of_any_text_is_none_that_is_held_out() -> None:
    """Where the bars' separators are among the texts, alone or in parts, no format holds one."""
    rng = Random(0)
    texts = (*(separator.strip() for separator in HELD_OUT_SEPARATORS), "§", ":", "=", ">", "ly")
    for _ in range(2000):
        template = odd_list_template(rng, texts)
        assert not any(separator.strip() in template for separator in HELD_OUT_SEPARATORS)


@pytest.mark.parametrize("separator", HELD_OUT_SEPARATORS)
def test_held_out_separators_are_not_trained(separator: str) -> None:
    """No trained separator is one of the bars' own."""
    assert separator not in SEPARATORS
    assert is_held_out(f"{{x}}{separator}{{y}}")
