"""Compose sentences that name a capital from parts: openings, middles, links and ends.

The country comes early and the capital late, with one or more clauses in between. Some sentences
contain the word "capital" or a comma before the answer, and some do not. No sentence contains a
word of `KEPT` or the ending "its capital, …", because these distinguish the sentence of the bars
from all others.
"""

from random import Random

from training.words import CATEGORIES, DAYS, MONTHS, ORDINALS

KEPT = ("anyone", "visits", "should", "see")
"""Words of the bars' sentence (`formats.HELD_OUT_CAPITALS`) that no composed sentence contains."""

PEOPLE = (
    *("Travellers who", "Merchants who", "Sailors who", "Students who", "People who", "All who"),
    *("Those who", "Children who", "Writers who", "Soldiers who", "Strangers who", "Guests who"),
    *("Many who", "Most of us who", "Some of them who", "Few who", "Friends who", "Ships that"),
    *(
        "The {job}s who",
        "Old {job}s who",
        "Two {job}s who",
        "Poor {job}s that",
        "My {animal}s that",
    ),
)
DO = (
    *("go to", "travel to", "live in", "come from", "know", "love", "leave", "work in", "cross"),
    *("write about", "dream of", "have been to", "return to", "study", "move to", "pass through"),
    *("sail to", "sing of", "fight for", "rule", "speak of", "trade with", "walk across", "like"),
)
PERSONS = (
    *("my brother", "the {job}", "a {job}", "our {job}", "his sister", "{person}", "she", "he"),
    *("the old {job}", "a young {job}", "the {job} and the {job}", "my friend {person}", "they"),
    *("{person} and {person}", "the man with the {animal}", "a woman from the {place}", "we", "I"),
)
DID = (
    *("went to", "travelled to", "lived in", "came from", "knew", "loved", "left", "worked in"),
    *("wrote about", "dreamed of", "came back to", "studied", "moved to", "passed through"),
    *("sailed to", "sang of", "fought for", "spoke of", "heard of", "crossed", "flew over"),
)
WHEN = ("When", "Before", "After", "Because", "While", "Since", "Until", "Although", "Once", "If")
OF = (
    *("The {job} of", "Every map of", "The flag of", "The {job}s of", "The best {place} of", "In"),
    *("The {colour} {place}s of", "All the {food} of", "The history of", "A picture of", "Above"),
    *("The people of", "The queen of", "The army of", "The songs of", "Half of", "The heart of"),
    *("Far away in", "Here in", "As for", "Of", "From", "All over", "The road through", "Across"),
    *("A letter from", "The ministers of", "A book about", "The oldest {place} in", "Nowhere in"),
)
LANDS = (
    *(" is a land of {food} and {food}", " lies beyond the {place}", " has many {place}s"),
    *(" is known for {colour} {animal}s", " has {number} {place}s", " is a fine country", ""),
    *(" has no {animal}s", " is far from here", " was once poor", " is full of {place}s"),
    *(", my dear {person}", ", the land of the {animal}", " sells {food}", ", said {person}"),
)
MIDDLES = (
    *(" in the spring", " with a {animal}", " on a {colour} horse", " for the {ordinal} time"),
    *(" every {day}", " in {month}", " as they say", " without fear", " against all advice"),
    *(" with {number} coins", " by night", " after the war", ", so we hear,", " of course"),
    *(" and, if there is time,", ", like the {job}s before them,", " because of the {food}"),
    *(" for love of {food}", " more than once", ", it is true,", " when the {food} is ripe"),
    *(" with a {tool} in the hand", " and the {job} too", ", says {person},", " now and then"),
)
PREDICATES = (
    *(" must not miss", " will remember", " often spoke of", " found a bed in", " ended up in"),
    *(" would like to live in", " always came to", " brought back {food} from", " heard about"),
    *(" bought {food} in", " can be proud of", " met the {job} in", " was seldom seen in"),
    *(" may want to look at", " leads to", " wrote home from", " has a friend in", " belongs to"),
    *(" ought to know", " has to begin with", " got lost in", " cannot forget", " praises"),
    *(" lost a {tool} in", " was built around", " is ruled from", " has a house in", " adores"),
    *(" goes straight to", " has much to say of", " keeps a {animal} in", " and above all", ""),
)
LINKS = (
    *(" the capital,", " the capital,", " the capital city,", " the capital of that land,", ""),
    *(" the chief city,", " the city of", " a city called", " the seat of the government,", ""),
    *(" the capital:", " the capital, which is", " that capital,", " their capital,", " the city,"),
    *(" her capital,", " the country's capital,", " the capital named", " the great city of", ""),
    *(" the capital, by name", " the first city,", " the capital -", " our capital,", ","),
    *(" the beautiful capital,", " the capital of the country,", " the capital, I mean", ":"),
)
ENDS = (
    *(".", ".", ".", ".", ".", ".", "!", ";", ", they say.", " at last.", " on {day}."),
    *(", where the {job} lives.", " and its {food}.", " again.", " in {month}."),
)
WORDS = CATEGORIES | {"day": DAYS, "month": MONTHS, "ordinal": ORDINALS}


def composed(rng: Random) -> str:
    """Return one of hundreds of millions of sentences, with the slots `{x}` and then `{y}`."""
    kind = rng.randrange(4)
    if kind == 0:
        opening = f"{rng.choice(PEOPLE)} {rng.choice(DO)} {{x}}"
    elif kind == 1:
        opening = f"{rng.choice(WHEN)} {rng.choice(PERSONS)} {rng.choice(DID)} {{x}}"
        opening += f"{rng.choice((',', ''))} {rng.choice(PERSONS)}"
    elif kind == 2:
        opening = f"{rng.choice(OF)} {{x}}"
    else:
        opening = f"{{x}}{rng.choice(LANDS)}{rng.choice((', and', ', but', ';', ' and', ''))}"
    middle = "".join(rng.sample(MIDDLES, rng.choice((0, 0, 1, 1, 2))))
    parts = (opening, middle, rng.choice(PREDICATES), rng.choice(LINKS), " {y}", rng.choice(ENDS))
    return _filled(rng, "".join(parts))


def _filled(rng: Random, text: str) -> str:
    """Return the text with a random word in every slot other than `{x}` and `{y}`."""
    for name, words in WORDS.items():
        while (slot := f"{{{name}}}") in text:
            text = text.replace(slot, rng.choice(words), 1)
    return text[0].upper() + text[1:]
