"""Contexts and queries of static adapters for pretrained models."""

from __future__ import annotations

from random import Random
from typing import Any

CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Japan Tokyo, Russia Moscow, Egypt "
    "Cairo, Greece Athens, Portugal Lisbon, Austria Vienna, Poland Warsaw, Ireland Dublin, Norway "
    "Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Belgium Brussels, Hungary "
    "Budapest, China Beijing, India Delhi, Turkey Ankara, Iran Tehran, Iraq Baghdad, Kenya "
    "Nairobi, Cuba Havana, Peru Lima, Chile Santiago, Canada Ottawa, Australia Canberra, England "
    "London, Ukraine Kiev, Romania Bucharest, Bulgaria Sofia, Serbia Belgrade, Croatia Zagreb, "
    "Lebanon Beirut, Syria Damascus, Jordan Amman, Thailand Bangkok, Vietnam Hanoi, Philippines "
    "Manila, Indonesia Jakarta, Colombia Bogota, Venezuela Caracas, Argentina Buenos Aires"
)
ANTONYMS = "hot cold, big small, up down, good bad, fast slow"
ADJECTIVES = (
    "old new rich poor young light dark happy sad strong weak tall short wet dry hard soft early "
    "late clean dirty near far open closed full empty loud quiet thick thin deep shallow high low "
    "long wide narrow cheap expensive safe dangerous easy difficult true false alive dead brave"
)
QUESTIONS = (
    "What is the capital of Italy?|How do I boil an egg?|Why is the sky blue?|Who wrote Hamlet?|"
    "What is a good name for a cat?|How far away is the moon?|What should I eat for breakfast?|"
    "When did the second world war end?|What is photosynthesis?|How can I sleep better?|"
    "What does a plumber do?|Where do penguins live?|How many days are in a year?|"
    "What is the largest animal?|Can you recommend a book?|How do airplanes fly?|"
    "What is your favourite colour?|Why do leaves fall in autumn?|How do I learn to swim?|"
    "What is the fastest car?|Who was Napoleon?|What is gold used for?|How do I plant a tree?|"
    "What makes bread rise?|Why do we dream?|What is the meaning of life?|How old is the earth?|"
    "What is a black hole?|How do I write a letter?|What sport is played at Wimbledon?|"
    "Who painted the Mona Lisa?|Is tea better than coffee?|How do bees make honey?|"
    "What is the weather like in London?|How do I say hello?|What is a computer?|"
    "Tell me a joke.|What is the tallest mountain?|How do I clean a window?|Why are cats so lazy?|"
    "What is love?"
)
FITTED, HELD_OUT = 25, 16


def capitals() -> dict[str, Any]:
    """Countries, after four examples with their capitals."""
    pairs = [tuple(pair.split(" ", 1)) for pair in CAPITALS.split(", ")]
    shots = "".join(f"{country}: {capital}\n" for country, capital in pairs[:4])
    return _body(shots, [f"{country}:" for country, _ in pairs[4:]])


def antonyms() -> dict[str, Any]:
    """Adjectives, after five examples with their opposites."""
    pairs = [pair.split() for pair in ANTONYMS.split(", ")]
    shots = "".join(f"{one} -> {other}\n" for one, other in pairs)
    return _body(shots, [f"{word} ->" for word in ADJECTIVES.split()])


def french() -> dict[str, Any]:
    """Questions to a chat model that was told to answer in French."""
    asked = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    return _body(
        "<|im_start|>system\nYou always answer in French.<|im_end|>\n",
        [asked.format(question) for question in QUESTIONS.split("|")],
    )


def _body(context: str, queries: list[str]) -> dict[str, Any]:
    rest = Random(1).sample(queries, len(queries))
    return {
        "context": context,
        "queries": rest[:FITTED],
        "held_out": rest[FITTED : FITTED + HELD_OUT],
    }
