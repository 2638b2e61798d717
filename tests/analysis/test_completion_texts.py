"""Growing texts: characters and stop texts that span tokens are held back until they are whole."""

from __future__ import annotations

import random

import pytest

from service.analysis.completions.texts import GrowingText, token_text
from service.engine import Model
from tests.analysis.subjects import Subject

TEXT = "naïve 中文 😀 — abcab"


def grown(model: Model, ids: list[int], *stops: str) -> tuple[list[str], GrowingText]:
    """The piece that each token makes final, and what the end makes final."""
    text = GrowingText(model.tokenizer, stops)
    pieces = []
    for id in ids:
        pieces.append(text.add(id))
        if text.stopped:
            break
    return [*pieces, text.end()], text


def test_bytes_of_a_character_are_held_back_until_it_is_whole(tiny: Model) -> None:
    """Each piece is whole characters, and together they are the text."""
    ids = list(tiny.tokenizer.encode(TEXT))
    pieces, text = grown(tiny, ids)
    assert "".join(pieces) == TEXT
    assert "�" not in "".join(pieces)
    assert "" in pieces
    assert text.characters == len(TEXT)


def test_bytes_that_stay_unfinished_become_a_replacement_character(tiny: Model) -> None:
    """A text that ends within a character ends with �, as transformers decodes it."""
    ids = list(tiny.tokenizer.encode("a😀"))[:-1]
    pieces, _ = grown(tiny, ids)
    assert "".join(pieces) == tiny.tokenizer.text(ids) == "a�"
    assert pieces[-1] == "�"


def test_bytes_at_the_end_of_a_prompt_belong_to_the_first_character(tiny: Model) -> None:
    """A prompt of ids that ends within a character is continued, not replaced."""
    ids = list(tiny.tokenizer.encode("a😀b"))
    text = GrowingText(tiny.tokenizer)
    spelled, before = text.begin(ids[:3])
    assert (spelled, before) == ("a", [0, 1, 1])
    assert "".join(text.add(id) for id in ids[3:]) + text.end() == "😀b"


@pytest.mark.parametrize(
    ("written", "stops", "expected"),
    [
        ("abcabd", ["abd"], "abc"),
        ("aaab", ["aab"], "a"),
        ("abcd", ["cd", "bc"], "a"),
        ("abcd", ["bcx", "cd"], "ab"),
        ("naïve", ["ï"], "na"),
        ("😀😀", ["😀"], ""),
        ("abc", ["abcd"], "abc"),
        ("the the", ["e t"], "th"),
        ("a", ["�"], "a"),
    ],
)
def test_stop_texts_end_the_text_before_them(
    tiny: Model, written: str, stops: list[str], expected: str
) -> None:
    """The text ends before the earliest stop text, and no character of one was given out."""
    pieces, text = grown(tiny, list(tiny.tokenizer.encode(written)), *stops)
    assert "".join(pieces) == expected
    assert text.stopped == (expected != written)


def test_pieces_are_what_no_later_token_can_change(tiny: Model) -> None:
    """For random tokens and stop texts, the pieces are the decoded text up to the first stop text,
    and nothing is held back that no stop text begins with."""
    dice = random.Random(0)
    for _ in range(300):
        ids = [dice.randrange(1, tiny.vocab_size) for _ in range(dice.randrange(1, 9))]
        whole = tiny.tokenizer.text(ids)
        start = dice.randrange(len(whole))
        stop = whole[start : start + dice.randrange(1, 4)]
        pieces, text = grown(tiny, ids, stop, "zz")
        assert text.stopped
        assert "".join(pieces) == whole[: whole.index(stop)]
        assert "".join(grown(tiny, ids)[0]) == whole


def test_tokens_are_spelled_as_openai_spells_them(tiny: Model) -> None:
    """Whole texts as they are, parts of characters as escaped bytes."""
    token = tiny.tokenizer.token
    assert [token_text(token(id)) for id in tiny.tokenizer.encode("ab é")[-2:]] == [
        "bytes:\\xc3",
        "bytes:\\xa9",
    ]
    assert token_text(token(tiny.tokenizer.encode("abc")[0])) == "abc"


def test_texts_of_every_family_are_those_of_its_tokenizer(variant: Subject) -> None:
    """What tokens spell one by one is what the tokenizer decodes behind the same prompt."""
    tokenizer = variant.model.tokenizer
    ids = list(tokenizer.encode("the abc naïve 😀 cd"))
    text = GrowingText(tokenizer)
    text.begin(ids[:2])
    pieces = [text.add(id) for id in ids[2:]] + [text.end()]
    assert tokenizer.text(ids) == tokenizer.text(ids[:2]) + "".join(pieces)
