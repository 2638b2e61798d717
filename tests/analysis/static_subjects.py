"""Contexts and queries of static adapters: those on the bundled model, and random ids."""

from __future__ import annotations

from random import Random
from typing import Any

ANIMALS = (
    "dog cat horse cow sheep goat wolf bear fox lion tiger mouse rabbit eagle crow snake frog "
    "whale shark bee ant spider camel donkey duck goose"
)
COLOURS = (
    "red blue green yellow black white brown purple pink orange grey gold silver violet crimson"
)
FOODS = (
    "bread butter cheese apple pear plum grape lemon onion carrot potato rice soup cake honey salt "
    "pepper egg fish milk tea coffee wine"
)
SHOTS = (
    ("cat", "animal"),
    ("red", "colour"),
    ("bread", "food"),
    ("dog", "animal"),
    ("blue", "colour"),
    ("apple", "food"),
)
WORDINGS = (
    "The capital of {x} is",
    "In {x}, the capital is",
    "{x} ~",
    "{x} =>",
    "{x}'s capital is",
    "Question: what is the capital of {x}? Answer:",
    "The government of {x} sits in",
    "The capital city of {x} is",
    "{x}: capital",
    "The capital of {x}, as we know, is",
    "We know that the capital of {x} is",
    "He said that the capital of {x} is",
    "Everyone knows that the capital of {x} is",
    "Q: capital of {x}? A:",
    "As for {x}, its capital is",
    "It is true that the capital of {x} is",
    "They say the capital of {x} is",
    "And the capital of {x} is",
    "Today the capital of {x} is",
    "I think that the capital of {x} is",
    "Now the capital of {x} is",
    "Remember: the capital of {x} is",
    "The capital of the country {x} is",
    "The capital of {x} was",
)
NOUNS = (
    "house tree river stone bread chair horse window garden letter music doctor winter ship "
    "mountain paper bridge market glass flower island king table school road cloud engine street "
    "forest farmer"
)


def labels(fitted: int = 25, held_out: int = 16) -> tuple[dict[str, Any], list[str]]:
    """Words with their categories, after six examples, and the answers of the held-out ones."""
    groups = {"animal": ANIMALS, "colour": COLOURS, "food": FOODS}
    words = [(word, name) for name, group in groups.items() for word in group.split()]
    rest = _shuffled([one for one in words if one not in SHOTS], 3)
    kept, measured = rest[:fitted], rest[fitted : fitted + held_out]
    body = {
        "context": "".join(f"{word}: {name}\n" for word, name in SHOTS),
        "queries": [f"{word}:" for word, _ in kept],
        "held_out": [f"{word}:" for word, _ in measured],
    }
    return body, [f" {name}" for _, name in measured]


def fact() -> dict[str, Any]:
    """A fact that the model cannot know, asked for in 24 wordings, of which 10 are held out."""
    wordings = [f"\n{one.format(x='Zorland')}" for one in _shuffled(list(WORDINGS), 4)]
    return {
        "context": "The capital of Zorland is Rome.",
        "queries": wordings[:14],
        "held_out": wordings[14:],
    }


def unseen_keys(seed: int) -> tuple[dict[str, Any], list[str]]:
    """A list of random pairs. The keys that are held out are in the context, but not in the fit."""
    words = _shuffled(NOUNS.split(), seed)
    pairs = _shuffled(list(zip(words[:13], words[13:26], strict=True)), seed + 1)
    body = {
        "context": "".join(f"{key} => {value}\n" for key, value in sorted(pairs)),
        "queries": [f"{key} =>" for key, _ in pairs[:5]],
        "held_out": [f"{key} =>" for key, _ in pairs[5:]],
    }
    return body, [f" {value}" for _, value in pairs[5:]]


def _shuffled(items: list[Any], seed: int) -> list[Any]:
    return Random(seed).sample(items, len(items))
