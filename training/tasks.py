"""Synthetic documents that teach the model to read its context.

The second half of a document follows from its first half. A document is a list of pieces of text,
each with the weight of its tokens in the loss. Text that cannot be predicted has weight 0, and text
that the context has given has the highest weight.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from random import Random

from training.facts import FAMOUS, Facts
from training.formats import (
    NOUNS,
    RELATIONS,
    STORIES,
    list_template,
    made_up_sentence,
    noun_templates,
    odd_list_template,
    sentence,
)
from training.wordings import composed
from training.words import CATEGORIES, DAYS, LETTERS, MONTHS, invented_name

UNKNOWN = 0.0
KEY = 0.1
FORM = 1.0
RECALL = 3.0


@dataclass(frozen=True)
class Piece:
    """Some text and the weight of its tokens in the loss."""

    text: str
    weight: float


@dataclass(frozen=True)
class Fact:
    """A pair, and the templates that may express it."""

    x: str
    y: str
    templates: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """The material of the documents: true facts, and the words and the texts of the vocabulary."""

    facts: Facts
    words: tuple[str, ...]
    texts: tuple[str, ...]


Document = list[Piece]

FAMOUS_SHARE = 0.25
"""Share of the documents of true facts that use only countries in `FAMOUS`."""

MANY_TO_ONE = ("language", "adjective", "continent", "currency")
"""Relations whose object does not determine the subject. No sentence asks for their subject."""


def recall(
    rng: Random, facts: Sequence[Fact], *, known: bool = False, again: bool = True
) -> Document:
    """Tell every fact, and ask again for some of them, at the end or in between.

    Args:
        rng: The source of all choices.
        facts: The facts to tell.
        known: Whether the facts are true, so that the model can predict even the first telling.
        again: Whether to ask for any fact again.
    """
    asked = rng.randint(2, 4 + 2 * len(facts)) if again else 0
    sequence = [*facts, *rng.choices(facts, k=asked)]
    if rng.random() < 0.5:
        rng.shuffle(sequence)
    told: set[tuple[str, str]] = set()
    used: set[str] = set()
    document: Document = []
    for fact in sequence:
        template = rng.choice(fact.templates)
        document += tell(
            fact,
            template,
            key=KEY if known else UNKNOWN,
            value=RECALL if known or (fact.x, fact.y) in told else UNKNOWN,
            form=FORM if template in used else UNKNOWN,
        )
        told.add((fact.x, fact.y))
        used.add(template)
    return document


def tell(fact: Fact, template: str, *, key: float, value: float, form: float) -> Iterator[Piece]:
    """Yield the pieces of a template. The first slot has weight `key`, the second `value`."""
    weights = iter((key, value))
    for part in re.split(r"(\{[xy]\})", template):
        if part in ("{x}", "{y}"):
            yield Piece(fact.x if part == "{x}" else fact.y, next(weights))
        elif part:
            yield Piece(part, form)


def true_facts(rng: Random, world: World) -> Document:
    """True facts of one relation, usually four to ten, which the document rarely asks for again."""
    relation = "capital" if rng.random() < 0.7 else rng.choice(sorted(world.facts))
    pairs = sorted(world.facts[relation].items())
    if rng.random() < FAMOUS_SHARE:
        pairs = [(x, y) for x, y in pairs if x in FAMOUS] or pairs
    told = rng.sample(pairs, rng.randint(4, 10) if rng.random() < 0.8 else rng.randint(1, 3))
    return recall(rng, _tellings(rng, world, relation, told), known=True, again=rng.random() < 0.1)


def swapped_facts(rng: Random, world: World) -> Document:
    """The same sentences with exchanged objects, which teach that the context overrules memory."""
    relation = rng.choice(("capital", "capital", *world.facts))
    subjects = rng.sample(sorted(world.facts[relation]), rng.randint(2, 8))
    objects = sorted(set(world.facts[relation].values()))
    chosen = rng.sample(objects, min(len(subjects), len(objects)))
    return recall(rng, _tellings(rng, world, relation, list(zip(subjects, cycle(chosen)))))


def invented_facts(rng: Random, world: World) -> Document:
    """The same sentences about invented names or arbitrary words."""
    count = rng.randint(1, 6)
    real = sorted(world.facts["capital"].items())
    names = [invented_name(rng) for _ in range(count)]
    values = [invented_name(rng) for _ in range(count)]
    draw = rng.random()
    if draw < 0.15:
        names = [subject for subject, _ in rng.sample(real, count)]
    elif draw < 0.3:
        values = [value for _, value in rng.sample(real, count)]
    elif draw < 0.4:
        values = rng.sample(world.words, count)
    relation = rng.choice(("capital", "capital", *RELATIONS, *rng.sample(NOUNS, 6)))
    return recall(rng, _tellings(rng, world, relation, list(zip(names, values, strict=True))))


def word_lists(rng: Random, world: World) -> Document:
    """Lists with keys and values from the closed word lists."""
    keys, values = (CATEGORIES[name] for name in rng.choices(sorted(CATEGORIES), k=2))
    count = rng.randint(2, 9)
    pairs = list(zip(rng.sample(keys, count), rng.sample(values, count), strict=True))
    return _list(rng, world, pairs)


def any_lists(rng: Random, world: World) -> Document:
    """Lists with keys and values from the whole vocabulary, sometimes two words or a number."""
    phrase_keys, phrase_values = rng.random() < 0.15, rng.random() < 0.15
    pairs = {
        _any_word(rng, world, phrase=phrase_keys): _any_word(rng, world, phrase=phrase_values)
        for _ in range(rng.randint(2, 9))
    }
    return _list(rng, world, list(pairs.items()))


def odd_lists(rng: Random, world: World) -> Document:
    """Lists of words, names or true capitals, with any text of the vocabulary as separator."""
    count = rng.randint(3, 9)
    capitals = sorted(world.facts["capital"].items())
    pairs = rng.sample(capitals, min(count, len(capitals)))
    draw = rng.random()
    if draw < 0.5:
        pairs = [(_any_word(rng, world), _any_word(rng, world)) for _ in range(count)]
    elif draw < 0.65:
        pairs = [(x, pairs[i - 1][1]) for i, (x, _) in enumerate(pairs)]
    template = odd_list_template(rng, world.texts)
    facts = [Fact(x, y, (template,)) for x, y in dict(pairs).items()]
    return recall(rng, facts, known=draw >= 0.65, again=draw < 0.65)


def stories(rng: Random, world: World) -> Document:
    """Sentences that tell one or two properties of a few people or objects."""
    kind = rng.choice(sorted(STORIES))
    subjects = rng.sample(CATEGORIES[kind], rng.randint(2, 5))
    end = rng.choice((" ", "\n"))
    facts = [
        Fact(x, rng.choice(CATEGORIES[category]), tuple(text + end for text in sentences))
        for category, sentences in rng.sample(sorted(STORIES[kind].items()), rng.randint(1, 2))
        for x in subjects
    ]
    return recall(rng, facts)


def labels(rng: Random, world: World) -> Document:
    """Lists of words from a few categories, each with the arbitrary label of its category."""
    names = rng.sample(sorted(CATEGORIES), rng.randint(2, 3))
    label = {name: _any_word(rng, world) for name in names}
    template = list_template(rng, world.words)
    document: Document = []
    seen: set[str] = set()
    for turn in range(rng.randint(6, 20)):
        name = rng.choice(names)
        fact = Fact(rng.choice(CATEGORIES[name]), label[name], (template,))
        value, form = RECALL if name in seen else UNKNOWN, FORM if turn else UNKNOWN
        document += tell(fact, template, key=KEY, value=value, form=form)
        seen.add(name)
    return document


def sequences(rng: Random, world: World) -> Document:
    """Sequences: counting in steps, days, months, letters, or a repeated list of words."""
    kind = rng.choice(("count", "count", "days", "months", "letters", "words"))
    length = rng.randint(5, 16)
    if kind == "count":
        start, step = rng.randint(0, 60), rng.choice((1, 1, 1, 2, 2, 3, 5, 10))
        items = [str(start + step * i) for i in range(length)]
    else:
        words = rng.sample(world.words, rng.randint(2, 6))
        cycle = {"days": DAYS, "months": MONTHS, "letters": LETTERS}.get(kind, tuple(words))
        start = rng.randrange(len(cycle))
        items = [cycle[(start + i) % len(cycle)] for i in range(length)]
    known_after = len(words) if kind == "words" else 2 if kind == "count" else 1
    end = rng.choice((", ", " ", "\n", " - ", "; ", " then "))
    document: Document = []
    for turn, item in enumerate(items):
        document.append(Piece(item, FORM if turn >= known_after else UNKNOWN))
        document.append(Piece(end, FORM if turn else UNKNOWN))
    return document


TASKS: Mapping[Callable[[Random, World], Document], float] = {
    true_facts: 0.40,
    swapped_facts: 0.15,
    odd_lists: 0.10,
    any_lists: 0.09,
    invented_facts: 0.08,
    word_lists: 0.07,
    stories: 0.05,
    sequences: 0.04,
    labels: 0.02,
}
"""The tasks, with their shares."""


def document(rng: Random, world: World) -> Document:
    """Return a document of a task drawn by its share."""
    task = rng.choices(list(TASKS), weights=list(TASKS.values()))[0]
    return task(rng, world)


def _tellings(
    rng: Random, world: World, relation: str, pairs: Sequence[tuple[str, str]]
) -> list[Fact]:
    """Return the pairs as facts: a list, arbitrary or composed words, or the fixed wordings."""
    form, several = rng.random(), rng.choice((1, 1, 1, 2))
    if form < 0.3:
        chosen: tuple[str, ...] = (list_template(rng, world.words),)
    elif form < 0.5:
        chosen = (sentence(rng, made_up_sentence(rng, world.words)),)
    elif form < 0.8 and relation.endswith("capital"):
        end = sentence(rng, "")
        chosen = tuple(composed(rng) + end for _ in range(several))
    else:
        wordings = [*RELATIONS.get(relation, ()), *noun_templates(relation)]
        if relation in MANY_TO_ONE:
            wordings = [text for text in wordings if text.index("{x}") < text.index("{y}")]
        sentences = rng.sample(wordings, several)
        end = sentence(rng, "")
        chosen = tuple(text + end for text in sentences)
    return [Fact(x, y, chosen) for x, y in pairs]


def _list(rng: Random, world: World, pairs: Sequence[tuple[str, str]]) -> Document:
    template = list_template(rng, world.words)
    return recall(rng, [Fact(x, y, (template,)) for x, y in pairs])


def _any_word(rng: Random, world: World, *, phrase: bool = False) -> str:
    if phrase:
        return f"{rng.choice(world.words)} {rng.choice(world.words)}"
    return rng.choice(world.words) if rng.random() < 0.95 else str(rng.randint(0, 99))
