"""Text to tokens and back, with a real byte-level tokenizer."""

from __future__ import annotations

import base64

import pytest

from schemas.common import UNSET, Token
from service.engine import Model
from service.engine.text import Tokenizer
from tests.checkpoints import ENDOFTEXT, byte_tokenizer

TEXTS = ["abc the cat", " the", "déjà vu", "日本 🙂", "a\n\tb", f"{ENDOFTEXT}ab{ENDOFTEXT}", ""]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """256 bytes, six merges and <|endoftext|>."""
    return Tokenizer(byte_tokenizer())


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    """Nothing is added and nothing lost: the ids spell the text again."""
    assert tokenizer.text(tokenizer.encode(text)) == text


def test_merges_apply(tokenizer: Tokenizer) -> None:
    """` the` is one token; `abcd` is `abc` and `d`, as the order of the merges says."""
    assert [token.text for token in tokenizer.tokens(tokenizer.encode(" the"))] == [" the"]
    assert [token.text for token in tokenizer.tokens(tokenizer.encode("abcd"))] == ["abc", "d"]


def test_a_text_that_spells_a_special_token_becomes_it(tokenizer: Tokenizer) -> None:
    """It is one id, echoed as special, and it is the anchor."""
    ids = tokenizer.encode(f"a{ENDOFTEXT}")
    assert ids[1:] == (tokenizer.anchor,)
    assert tokenizer.token(ids[1]) == Token(ids[1], ENDOFTEXT, special=True)
    assert tokenizer.token(ids[0]).special is UNSET


def test_without_a_special_token_there_is_no_anchor() -> None:
    """The same text is then its characters."""
    plain = Tokenizer(byte_tokenizer(special=False))
    assert plain.anchor is None
    assert plain.text(plain.encode(ENDOFTEXT)) == ENDOFTEXT
    assert all(token.special is UNSET for token in plain.tokens(plain.encode(ENDOFTEXT)))


@pytest.mark.parametrize("text", ["é", "日", "🙂"])
def test_pieces_of_a_character_carry_their_bytes(tokenizer: Tokenizer, text: str) -> None:
    """A token that is no whole character shows � and gives its bytes, which join to the text."""
    tokens = tokenizer.tokens(tokenizer.encode(text))
    assert len(tokens) == len(text.encode())
    assert all("�" in token.text and token.bytes for token in tokens)
    joined = b"".join(base64.b64decode(token.bytes or "") for token in tokens)
    assert joined.decode() == text


def test_whole_characters_carry_no_bytes(tokenizer: Tokenizer) -> None:
    """Where the text tells all, `bytes` is absent."""
    assert all(token.bytes is UNSET for token in tokenizer.tokens(tokenizer.encode("abc the\n")))


@pytest.mark.parametrize("text", ["abc the cat", " the", f"ab{ENDOFTEXT}cd"])
def test_offsets_cut_the_text_into_its_tokens(tokenizer: Tokenizer, text: str) -> None:
    """Half-open characters of each token, one behind the other, covering the whole text."""
    offsets = tokenizer.offsets(text)
    tokens = tokenizer.tokens(tokenizer.encode(text))
    assert [text[start:stop] for start, stop in offsets] == [token.text for token in tokens]


def test_offsets_of_pieces_name_the_character_they_belong_to(tokenizer: Tokenizer) -> None:
    """Each byte of 日 covers that one character."""
    assert tokenizer.offsets("a日b") == [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]


def test_an_id_without_a_token_is_empty(tokenizer: Tokenizer) -> None:
    """A padded embedding has ids that the tokenizer does not know."""
    assert tokenizer.token(tokenizer.size + 5) == Token(tokenizer.size + 5, "")


def test_every_id_of_a_model_is_echoed(tiny: Model) -> None:
    """All ids have distinct spellings in bytes, so that an echo identifies them."""
    tokens = tiny.tokenizer.tokens(range(tiny.vocab_size))
    spelled = {
        base64.b64decode(token.bytes) if token.bytes else token.text.encode() for token in tokens
    }
    assert len(spelled) == tiny.vocab_size == tiny.tokenizer.size
