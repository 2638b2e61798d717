"""Text to tokens and back, with a real byte-level tokenizer."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from schemas.common import UNSET, Token
from service.engine import Model
from service.engine.text import Tokenizer
from tests.checkpoints import ENDOFTEXT, byte_tokenizer
from tests.conftest import BUNDLED

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
    assert ids[1:] == tokenizer.anchor
    assert tokenizer.token(ids[1]) == Token(ids[1], ENDOFTEXT, special=True)
    assert tokenizer.token(ids[0]).special is UNSET


def test_without_a_special_token_there_is_no_anchor() -> None:
    """The same text is then its characters."""
    plain = Tokenizer(byte_tokenizer(special=False))
    assert plain.anchor == ()
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
    """`bytes` is absent if the text tells all."""
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


LONG = "Learning without training: the cat sat on the mat, " * 8
FILE_TEXTS = (*TEXTS, LONG, f"  A<extra> b <mask>C{ENDOFTEXT} ", "Ünïcode: NAÏVE")
CLASSES = ("GPT2Tokenizer", "PreTrainedTokenizerFast")
"""GPT2Tokenizer builds its tokenizer anew from parts of the file; the other takes all of it."""
TRUNCATION = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 64},
    "direction": "Left",
    "pad_to_multiple_of": 8,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": ENDOFTEXT,
}
PREFIXED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
SPECIAL = {"content": "<mask>", "lstrip": True, "rstrip": True, "normalized": False}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": ENDOFTEXT, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {ENDOFTEXT: {"id": ENDOFTEXT, "ids": [0], "tokens": [ENDOFTEXT]}},
}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "nothing": {},
    "truncation": {"tokenizer": {"truncation": TRUNCATION}},
    "padding": {"tokenizer": {"padding": PADDING}},
    "truncation and padding": {"tokenizer": {"truncation": TRUNCATION, "padding": PADDING}},
    "normalizer": {"tokenizer": {"normalizer": {"type": "Lowercase"}}},
    "pre-tokenizer": {"tokenizer": {"pre_tokenizer": PREFIXED}},
    "template": {"tokenizer": {"post_processor": TEMPLATE}},
    "prefix space": {"tokenizer_config": {"add_prefix_space": True}},
    "limits": {
        "tokenizer_config": {
            "model_max_length": 4,
            "max_length": 4,
            "truncation": True,
            "truncation_side": "left",
            "padding": "max_length",
            "padding_side": "left",
        }
    },
    "begin and end": {"tokenizer_config": {"add_bos_token": True, "add_eos_token": True}},
    "split specials": {"tokenizer_config": {"split_special_tokens": True}},
    "clean up": {"tokenizer_config": {"clean_up_tokenization_spaces": True}},
    "added tokens": {"added_tokens": {"<extra>": 5120}},
    "added tokens decoder": {"tokenizer_config": {"added_tokens_decoder": {"5120": SPECIAL}}},
    "special tokens map": {"special_tokens_map": {"additional_special_tokens": ["<extra>"]}},
    "special token": {"special_tokens_map": {"mask_token": SPECIAL}},
}
"""Fields that are set in the files of a tokenizer."""


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes the bundled tokenizer with further fields in its files."""

    def write(tokenizer_class: str, **files: dict[str, Any]) -> Path:
        folder = tmp_path / "tokenizer"
        shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        named = {"tokenizer_class": tokenizer_class}
        files["tokenizer_config"] = named | files.get("tokenizer_config", {})
        for name, fields in files.items():
            file = folder / f"{name}.json"
            old = json.loads(file.read_text()) if file.exists() else {}
            file.write_text(json.dumps(old | fields))
        return folder

    return write


@pytest.mark.parametrize("tokenizer_class", CLASSES)
@pytest.mark.parametrize("option", OPTIONS)
def test_ids_are_those_of_transformers(
    written: Callable[..., Path], option: str, tokenizer_class: str
) -> None:
    """No file adds to a text, cuts it or pads it: the ids are those of transformers."""
    folder = written(tokenizer_class, **OPTIONS[option])
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for _ in range(2))
    tokenizer = Tokenizer(ours)
    for text in FILE_TEXTS:
        ids = tokenizer.encode(text)
        assert list(ids) == theirs(text, add_special_tokens=False)["input_ids"]
        assert len(tokenizer.offsets(text)) == len(ids)
    assert len(tokenizer.encode(LONG)) > 64


@pytest.mark.parametrize("tokenizer_class", CLASSES)
def test_bpe_dropout_is_switched_off(
    written: Callable[..., Path], bundled: Model, tokenizer_class: str
) -> None:
    """One text always gives the same ids, those of the same tokenizer without dropout."""
    model = json.loads((BUNDLED / "tokenizer.json").read_text())["model"]
    folder = written(tokenizer_class, tokenizer={"model": model | {"dropout": 0.5}})
    theirs = AutoTokenizer.from_pretrained(folder)
    if tokenizer_class == "PreTrainedTokenizerFast":
        assert len({tuple(theirs(LONG)["input_ids"]) for _ in range(4)}) == 4
    tokenizer = Tokenizer(theirs)
    assert {tokenizer.encode(LONG) for _ in range(4)} == {bundled.tokenizer.encode(LONG)}
    assert tokenizer.offsets(LONG) == bundled.tokenizer.offsets(LONG)
