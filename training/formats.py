"""Formats of pairs: all templates and separators of the tasks, and those kept for the bars.

A template contains `{x}` and `{y}` in either order and ends with the text between two pairs. The
model predicts the second slot.
"""

from random import Random

from training.words import listed

HELD_OUT_SEPARATORS = (" ~ ", " >> ", " := ")
HELD_OUT_CAPITALS = (
    "Anyone who visits {x} should see its capital, {y}.\n",
    "{x} ~ {y}\n",
)
"""Formats that no task writes. Random rows and natural text may contain their tokens."""

SEPARATORS = (
    *(" => ", ": ", " -> ", " = ", "=", ":", " | ", "|", " @ ", "@", " - ", " -- ", ", ", "; "),
    *(" / ", "/", " # ", " * ", " + ", " & ", " < ", " > ", " <- ", " : ", " :: ", "::", " ! "),
    *(" % ", " ^ ", "_", "\t", " ... ", " == ", "->", "=>", " || ", "? ", " . ", " $ "),
    *(" is ", " was ", " means ", " equals ", " goes with ", " has ", " maps to ", " becomes "),
    *(" likes ", " follows ", " to ", " and ", " or ", " with ", " in ", " gives ", " needs "),
)
SYMBOLS = listed("| / @ # = + - * : ; , . ! ? < > -> => <- == :: || // ++ && .. ... _ ^ % $ &")
BRACKETS = (("[", "]"), ("(", ")"), ("<", ">"), ("{", "}"), ('"', '"'), ("'", "'"), ("*", "*"))
ENDS = ("\n", "\n", "\n", ", ", "; ", ". ", " ", " | ", "\n\n", ".\n", ";\n", ",\n")
SENTENCE_ENDS = (" ", "\n")

NOUN_PATTERNS = (
    "The {noun} of {x} is {y}.",
    "{x}'s {noun} is {y}.",
    "The {noun} of {x} is called {y}.",
    "The {noun} of {x}: {y}.",
    "The {noun} of {x} was {y}.",
    "As for {x}, its {noun} is {y}.",
    "For {x}, the {noun} is {y}.",
    "{x} has {y} as its {noun}.",
    "In {x} the {noun} is {y}.",
    "{x} - {noun} - {y}.",
    "{x}, {noun}: {y}.",
    "{noun} ({x}) = {y}.",
    "{noun} of {x} => {y}.",
    "Question: what is the {noun} of {x}? Answer: {y}.",
    "Q: What is the {noun} of {x}?\nA: {y}.",
    "What is the {noun} of {x}? {y}.",
    "Name the {noun} of {x}. {y}.",
    "We know that the {noun} of {x} is {y}.",
    "They say the {noun} of {x} is {y}.",
    "{y} is the {noun} of {x}.",
    "{y} is {x}'s {noun}.",
    "{y} serves as the {noun} of {x}.",
)
NOUNS = listed(
    "king queen owner colour price number name river teacher friend symbol leader flower animal "
    "size age code author founder winner home mother father key answer partner captain rival "
    "secret song tree star stone guard word label prize judge gift"
)

RELATIONS: dict[str, tuple[str, ...]] = {
    "capital": (
        "The capital city of {x} is {y}.",
        "The capital of {x} is the city of {y}.",
        "{x} has its capital in {y}.",
        "{x}'s capital city is {y}.",
        "The government of {x} sits in {y}.",
        "The seat of government of {x} is {y}.",
        "If you travel to the capital of {x}, you arrive in {y}.",
        "The main city of {x} is {y}.",
        "In {x}, the capital is {y}.",
        "{x} is governed from {y}.",
        "{x} is a country whose capital is {y}.",
        "The parliament of {x} meets in {y}.",
        "When in {x}, visit {y}.",
        "{x} (capital: {y}).",
        "Country: {x}. Capital: {y}.",
        "country = {x}, capital = {y}.",
        "Which city is the capital of {x}? It is {y}.",
        "{y} is the capital of {x}.",
        "{y} is the capital city of {x}.",
        "{y}, the capital of {x}.",
        "{y} is a city in {x}.",
        "The city of {y} is the capital of {x}.",
        "The embassy in {x} is in {y}.",
        "He flew to {x} and landed in {y}.",
    ),
    "language": (
        "People in {x} speak {y}.",
        "In {x} they speak {y}.",
        "The official language of {x} is {y}.",
        "The people of {x} speak {y}.",
        "In {x}, most people speak {y}.",
        "To live in {x} you should learn {y}.",
        "Newspapers in {x} are printed in {y}.",
        "Country: {x}. Language: {y}.",
        "She grew up in {x} and speaks {y}.",
        "Children in {x} learn {y}.",
    ),
    "adjective": (
        "Someone from {x} is {y}.",
        "A person from {x} is called {y}.",
        "People from {x} are {y}.",
        "The adjective for {x} is {y}.",
        "He was born in {x}, so he is {y}.",
        "A citizen of {x} is {y}.",
        "Food from {x} is {y} food.",
        "The people of {x} are {y}.",
        "Country: {x}. Adjective: {y}.",
    ),
    "continent": (
        "{x} is in {y}.",
        "{x} is a country in {y}.",
        "{x} lies in {y}.",
        "{x} is located in {y}.",
        "{x} belongs to the continent of {y}.",
        "On the map, {x} is part of {y}.",
        "You will find {x} in {y}.",
        "Country: {x}. Continent: {y}.",
    ),
    "currency": (
        "People in {x} pay with {y}.",
        "The money of {x} is {y}.",
        "In {x} you pay in {y}.",
        "Prices in {x} are given in {y}.",
        "Shops in {x} take {y}.",
        "Country: {x}. Currency: {y}.",
    ),
    "domain": (
        "The internet domain of {x} is {y} .",
        "Web sites in {x} end in {y} .",
        "Addresses from {x} end with {y} .",
        "The internet code of {x} is {y} .",
    ),
    "state capital": (
        "The capital of {x} is {y}.",
        "The capital of the state of {x} is {y}.",
        "The state of {x} is governed from {y}.",
        "The governor of {x} lives in {y}.",
        "State: {x}. Capital: {y}.",
        "{y} is the capital of {x}.",
        "{x}'s capital is {y}.",
    ),
}
"""Sentences of each relation; all sentences of a relation have the same meaning."""

STORIES: dict[str, dict[str, tuple[str, ...]]] = {
    "person": {
        "place": ("{x} is in the {y}.", "{x} went to the {y}.", "You can find {x} in the {y}."),
        "job": ("{x} is a {y}.", "{x} works as a {y}.", "By trade, {x} is a {y}."),
        "food": ("{x} likes {y}.", "The favourite food of {x} is {y}.", "{x} eats {y}."),
        "colour": ("{x} wears {y}.", "The coat of {x} is {y}.", "{x} loves the colour {y}."),
        "animal": ("{x} has a {y}.", "The pet of {x} is a {y}.", "{x} keeps a {y}."),
        "tool": ("{x} carries a {y}.", "In the hand of {x} is a {y}.", "{x} holds a {y}."),
        "number": ("{x} has {y} coins.", "The coins of {x} number {y}."),
        "person": ("{x} knows {y}.", "The friend of {x} is {y}.", "{x} is married to {y}."),
    },
    "tool": {
        "place": ("The {x} is in the {y}.", "They put the {x} in the {y}."),
        "colour": ("The {x} is {y}.", "The colour of the {x} is {y}."),
        "number": ("The {x} costs {y} coins.", "The price of the {x} is {y}."),
    },
    "animal": {
        "food": ("The {x} eats {y}.", "We feed the {x} with {y}."),
        "place": ("The {x} sleeps in the {y}.", "The {x} hides in the {y}."),
        "person": ("The {x} belongs to {y}.", "The owner of the {x} is {y}."),
    },
    "food": {
        "place": ("The {x} is kept in the {y}.", "Go and get the {x} from the {y}."),
        "person": ("The {x} is for {y}.", "They gave the {x} to {y}."),
    },
    "job": {
        "person": ("The {x} is {y}.", "The name of the {x} is {y}.", "Ask for the {x}, {y}."),
        "animal": ("The {x} rides a {y}.", "The {x} bought a {y}."),
        "place": ("The {x} waits in the {y}.", "We met the {x} in the {y}."),
    },
}
"""Map of category of x → category of y → sentences with the same meaning."""


def noun_templates(noun: str) -> tuple[str, ...]:
    """Return the patterns with a noun filled in."""
    return tuple(
        (pattern[0].upper() + pattern[1:] if pattern[0] != "{" else pattern).replace("{noun}", noun)
        for pattern in NOUN_PATTERNS
    )


def sentence(rng: Random, template: str) -> str:
    """Return a sentence template followed by the text before the next sentence."""
    return template + rng.choice(SENTENCE_ENDS)


def list_template(rng: Random, words: tuple[str, ...]) -> str:
    """Return a list format with a common separator, or one made of symbols and `words`."""
    while True:
        middle = rng.choice(SEPARATORS) if rng.random() < 0.5 else _made_up(rng, words)
        left, right = "{x}", "{y}"
        if rng.random() < 0.2:
            opened, closed = rng.choice(BRACKETS)
            left, right = rng.choice(
                (
                    (f"{opened}{left}{closed}", right),
                    (left, f"{opened}{right}{closed}"),
                    (f"{opened}{left}", f"{right}{closed}"),
                    (f"{opened}{left}{closed}", f"{opened}{right}{closed}"),
                )
            )
        opening = rng.choice(("- ", "* ", "> ", "# ", "let ", "the ")) if rng.random() < 0.1 else ""
        template = f"{opening}{left}{middle}{right}{rng.choice(ENDS)}"
        if not is_held_out(template):
            return template


def odd_list_template(rng: Random, texts: tuple[str, ...]) -> str:
    """Return a list format whose separator is one or two of `texts`."""
    while True:
        middle = " ".join(rng.choices(texts, k=rng.choice((1, 1, 1, 2))))
        template = f"{{x}} {middle} {{y}}{rng.choice(ENDS)}"
        if not is_held_out(template):
            return template


def made_up_sentence(rng: Random, words: tuple[str, ...]) -> str:
    """Return a sentence of arbitrary words with the two slots, `{x}` first."""
    opening = " ".join(rng.choices(words, k=rng.randint(0, 4))).capitalize()
    between = " ".join(rng.choices(words, k=rng.randint(1, 7)))
    mark, end = rng.choice(("", "", ",", ",", ":")), rng.choice((".", ".", ".", "!", ""))
    return f"{opening} {{x}} {between}{mark} {{y}}{end}".strip()


def is_held_out(template: str) -> bool:
    """Return whether a template contains a separator that is kept for the bars."""
    return any(separator.strip() in template for separator in HELD_OUT_SEPARATORS)


def _made_up(rng: Random, words: tuple[str, ...]) -> str:
    """Return one to three symbols or words, with or without spaces around them."""
    parts = [
        rng.choice(SYMBOLS if rng.random() < 0.6 else words)
        for _ in range(rng.choice((1, 1, 2, 3)))
    ]
    inner = rng.choice(("", " ")).join(parts)
    wordy = inner[0].isalpha() or inner[-1].isalpha()
    return f" {inner} " if wordy or rng.random() < 0.6 else inner
