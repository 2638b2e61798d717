"""The synthetic documents, and their weights in the loss."""

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


def test_second_slot_has_the_weight_of_the_value() -> None:
    """The second slot of a sentence has the value's weight, whether it is `{x}` or `{y}`."""
    fact = Fact("Germany", "Berlin", ())
    pieces = list(tell(fact, "{y} is in {x}.", key=UNKNOWN, value=RECALL, form=FORM))
    assert [(piece.text, piece.weight) for piece in pieces] == [
        ("Berlin", UNKNOWN),
        (" is in ", FORM),
        ("Germany", RECALL),
        (".", FORM),
    ]


def test_value_has_weight_only_after_its_first_telling() -> None:
    """An arbitrary value has weight 0 at its first telling and full weight later."""
    facts = [Fact(f"key{i}", f"value{i}", ("{x}: {y}\n",)) for i in range(5)]
    told = set()
    for piece in recall(Random(1), facts):
        if piece.text.startswith("value"):
            assert piece.weight == (RECALL if piece.text in told else UNKNOWN)
            told.add(piece.text)
    assert len(told) == len(facts)


def test_true_fact_has_weight_from_its_first_telling() -> None:
    """A true fact has full weight at every telling."""
    facts = [Fact(x, y, ("{x}: {y}\n",)) for x, y in PLACES.items()]
    values = [p for p in recall(Random(2), facts, known=True) if p.text in PLACES.values()]
    assert {piece.weight for piece in values} == {RECALL}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_document_depends_only_on_its_seed(task: Task) -> None:
    """The same seed gives the same document, and another seed another one."""
    assert task(Random(3), WORLD) == task(Random(3), WORLD)
    assert task(Random(3), WORLD) != task(Random(4), WORLD)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_every_task_has_predictable_text(task: Task) -> None:
    """Over 20 seeds, every task has text with weight."""
    weights = {piece.weight for seed in range(20) for piece in task(Random(seed), WORLD)}
    assert weights & {FORM, RECALL}
    assert UNKNOWN in weights or len(weights) > 1


def test_held_out_names_are_not_trained() -> None:
    """No invented name is both trained and held out."""
    trained = {invented_name(Random(seed)) for seed in range(400)}
    kept = {invented_name(Random(seed), held_out=True) for seed in range(400)}
    assert not trained & kept
