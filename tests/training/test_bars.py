"""The questions of the bars, and when an answer counts."""

from random import Random

import pytest

from training.bars import SHOTS, Bar, questions

PAIRS = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")]


def shown(rng: Random) -> list[tuple[str, str]]:
    """Four fixed pairs."""
    return PAIRS[:SHOTS]


def test_a_list_is_asked_again_in_its_own_format() -> None:
    """Context, query and answer together are the list and one of its lines."""
    question = next(questions("{x} => {y}\n", shown, again=True))
    assert question.context == "a => 1\nb => 2\nc => 3\nd => 4\n"
    assert question.query + question.answer + "\n" in question.context


def test_a_new_pair_is_asked_after_the_shots() -> None:
    """Without `again`, the fifth pair is asked and is not in the context."""
    question = next(questions("The capital of {x} is {y}. ", lambda _: PAIRS, again=False))
    assert question.context.endswith("The capital of d is 4.")
    assert question.query == " The capital of e is"
    assert question.answer == " 5"
    assert "e" not in question.context.replace("The", "")


@pytest.mark.parametrize(
    ("value", "at_least", "kept"),
    [(1, True, True), (3, True, True), (0, True, False), (3, False, False)],
)
def test_a_bar_is_kept_at_its_bound(value: float, at_least: bool, kept: bool) -> None:
    """The bound itself keeps the bar, from either side."""
    assert Bar("", value, 1, at_least=at_least).kept is kept
