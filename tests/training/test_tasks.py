"""The synthetic documents and their weights in the loss."""

from collections.abc import Callable
from random import Random

import pytest

from training.tasks import (
    FORM,
    RECALL,
    TASKS,
    UNKNOWN,
    Document,
    Fact,
    World,
    recall,
    tell,
)
from training.words import invented_name

PLACES = {f"Land{letter}": f"City{letter}" for letter in "ABCDEFGHIJ"}
WORLD = World(
    {"capital": PLACES, "continent": dict.fromkeys(PLACES, "Asia")},
    tuple(f"word{i}" for i in range(40)),
    ("§", "7", "ly"),
)

Task = Callable[[Random, World], Document]


def test_slots_are_weighed_in_the_order_of_the_text() -> None:
    """The slot that comes second is the one to predict, whichever it is."""
    fact = Fact("Germany", "Berlin", ())
    pieces = list(tell(fact, "{y} is in {x}.", key=UNKNOWN, value=RECALL, form=FORM))
    assert [(piece.text, piece.weight) for piece in pieces] == [
        ("Berlin", UNKNOWN),
        (" is in ", FORM),
        ("Germany", RECALL),
        (".", FORM),
    ]


def test_a_value_weighs_only_when_it_was_told_before() -> None:
    """The first telling of an arbitrary pair cannot be known; every later one can."""
    facts = [Fact(f"key{i}", f"value{i}", ("{x}: {y}\n",)) for i in range(5)]
    told = set()
    for piece in recall(Random(1), facts):
        if piece.text.startswith("value"):
            assert piece.weight == (RECALL if piece.text in told else UNKNOWN)
            told.add(piece.text)
    assert len(told) == len(facts)


def test_a_true_fact_weighs_from_its_first_telling() -> None:
    """What the model is to remember is learned at once."""
    facts = [Fact(x, y, ("{x}: {y}\n",)) for x, y in PLACES.items()]
    values = [p for p in recall(Random(2), facts, known=True) if p.text in PLACES.values()]
    assert {piece.weight for piece in values} == {RECALL}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_a_document_is_a_function_of_its_seed(task: Task) -> None:
    """The same seed makes the same document, another seed another."""
    assert task(Random(3), WORLD) == task(Random(3), WORLD)
    assert task(Random(3), WORLD) != task(Random(4), WORLD)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_every_task_asks_for_something(task: Task) -> None:
    """Over some seeds, every task has something that follows from its context."""
    weights = {piece.weight for seed in range(20) for piece in task(Random(seed), WORLD)}
    assert weights & {FORM, RECALL}
    assert UNKNOWN in weights or len(weights) > 1


def test_names_of_the_evaluation_are_never_trained() -> None:
    """Invented names fall in two parts that share none."""
    trained = {invented_name(Random(seed)) for seed in range(400)}
    kept = {invented_name(Random(seed), held_out=True) for seed in range(400)}
    assert not trained & kept
