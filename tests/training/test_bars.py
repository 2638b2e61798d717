"""The questions of the bars, and the rule by which a bar is kept."""

from random import Random

import pytest

from training.bars import SHOTS, Bar, questions

PAIRS = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")]


def shown(rng: Random) -> list[tuple[str, str]]:
    """Return four fixed pairs."""
    return PAIRS[:SHOTS]


def test_question_repeats_a_line_of_its_list() -> None:
    """The context is the list; query and answer together are one of its lines."""
    question = next(questions("{x} => {y}\n", shown, again=True))
    assert question.context == "a => 1\nb => 2\nc => 3\nd => 4\n"
    assert question.query + question.answer + "\n" in question.context


def test_question_without_again_asks_for_a_new_pair() -> None:
    """Without `again`, the question is the fifth pair, which is not in the context."""
    question = next(questions("The capital of {x} is {y}. ", lambda _: PAIRS, again=False))
    assert question.context.endswith("The capital of d is 4.")
    assert question.query == " The capital of e is"
    assert question.answer == " 5"
    assert "e" not in question.context.replace("The", "")


@pytest.mark.parametrize(
    ("value", "at_least", "kept"),
    [(1, True, True), (3, True, True), (0, True, False), (3, False, False)],
)
def test_value_at_the_bound_keeps_the_bar(value: float, at_least: bool, kept: bool) -> None:
    """A bar is kept at its bound, and on the right side of it."""
    assert Bar("", value, 1, at_least=at_least).kept is kept
