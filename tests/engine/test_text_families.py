"""Text to tokens and back, with the kinds of tokenizers that decoder families use."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from schemas.common import UNSET, Token
from service.engine.text import Tokenizer
from tests.checkpoints import ENDOFTEXT

TEXTS = (
    "Hello",
    " Hello",
    "  Hello   Hello ",
    "Hello\n\tHello\n",
    "日本 🙂é",
    "e\u0301 ▁x",
    "Hello<s> Hello</s><extra> Hello",
    f"Hello {ENDOFTEXT}Hello",
    "<0x41> Hello",
    " ",
    "",
)
MERGES = [("H", "e"), ("l", "l"), ("He", "ll"), ("Hell", "o")]
LLAMA_3_SPLIT = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")


def byte_level(*specials: str, nfc: bool = False) -> Backend:
    """A byte-level BPE tokenizer with the words `Hello` and ` Hello`, as GPT-2's."""
    merges = [*MERGES, ("Ġ", "Hello")]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    vocabulary = {piece: i for i, piece in enumerate([*specials, *pieces])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges))
    if nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.add_special_tokens(list(specials))
    return backend


def llama_3(*specials: str) -> Backend:
    """A byte-level tokenizer whose post-processor cuts spaces off offsets and prepends a token."""
    backend = byte_level(*specials)
    split = pre_tokenizers.Split(LLAMA_3_SPLIT, "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    trim = processors.ByteLevel(trim_offsets=True)
    backend.post_processor = processors.Sequence([trim, begins_with(specials[0])])
    return backend


def sentencepiece(*specials: str) -> Backend:
    """A BPE tokenizer with spaces as ▁ and single bytes, without a normaliser, as Gemma's."""
    merges = [*MERGES, ("▁", "Hello"), ("▁", "▁")]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁Helox"]
    pieces += ["".join(pair) for pair in merges]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Backend(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(list(specials))
    return backend


def llama_2(*specials: str) -> Backend:
    """Each text, and each text after a special token, is given a space first."""
    backend = sentencepiece(*specials)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = begins_with("<s>")
    return backend


def gemma(*specials: str) -> Backend:
    """Spaces become ▁ and none is added; runs of ▁ are added tokens and tokens of the model."""
    backend = sentencepiece(*specials)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.post_processor = begins_with("<bos>")
    backend.add_tokens([AddedToken("▁▁", normalized=False), AddedToken("<extra>")])
    return backend


def unigram(*specials: str) -> Backend:
    """A Unigram tokenizer with Metaspace, which has no token for most characters."""
    words = [("▁", -2.0), ("▁Hello", -1.0), ("Hello", -3.0), ("\n", -3.0), ("日", -4.0)]
    backend = Backend(models.Unigram([*((piece, 0.0) for piece in specials), *words], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.add_special_tokens(list(specials))
    return backend


def begins_with(special: str) -> processors.TemplateProcessing:
    """Prepends a special token, which stands first in the vocabulary or second after <unk>."""
    id = 0 if special.startswith("<|") else 1
    return processors.TemplateProcessing(
        single=f"{special} $A", pair=f"{special} $A $B", special_tokens=[(special, id)]
    )


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer and what is known of it.

    Args:
        backend: Makes it.
        specials: Its special tokens, in the order of their ids.
        tokenizer_class: The class that its tokenizer_config.json names.
        model_type: The model type of its config.json.
        prefix: The special tokens that it puts before a text.
        anchor: The special tokens of the baseline `anchored`.
        config: Further fields of tokenizer_config.json.
        adds_space: Whether it puts a space before a text that does not begin with one.
        vocabulary_files: Whether it comes as vocab.json and merges.txt.
    """

    backend: Callable[..., Backend]
    specials: tuple[str, ...]
    tokenizer_class: str
    model_type: str
    prefix: tuple[str, ...] = ()
    anchor: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    adds_space: bool = False
    vocabulary_files: bool = False

    def save(self, folder: Path) -> Path:
        """Write the files of a tokenizer as a checkpoint has them."""
        backend = self.backend(*self.specials)
        if self.vocabulary_files:
            backend.model.save(str(folder))
        else:
            backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": self.tokenizer_class} | self.config
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "config.json").write_text(json.dumps({"model_type": self.model_type}))
        return folder


S, BOS, BEGIN, START = "<s>", "<bos>", "<|begin_of_text|>", "<|im_start|>"
SPM = ("<unk>", S, "</s>")
GEMMA = ("<unk>", BOS, "<eos>", "<pad>", "<mask>")
NAMED: dict[str, Any] = {"bos_token": S, "eos_token": "</s>", "unk_token": "<unk>"}
FAST = "PreTrainedTokenizerFast"
END = (ENDOFTEXT,)
KINDS = {
    "gpt2": Kind(byte_level, END, "GPT2Tokenizer", "gpt2", anchor=END),
    "pythia": Kind(byte_level, END, "GPTNeoXTokenizer", "gpt_neox", anchor=END),
    "pythia, fast": Kind(
        lambda *specials: byte_level(*specials, nfc=True), END, FAST, "gpt_neox", anchor=END
    ),
    "qwen": Kind(
        byte_level, (ENDOFTEXT, START), "Qwen2Tokenizer", "qwen2", anchor=END,
        config={"bos_token": None, "eos_token": ENDOFTEXT, "add_bos_token": False},
    ),
    "smollm2": Kind(
        byte_level, (ENDOFTEXT, START), "GPT2Tokenizer", "llama", anchor=END,
        config={"bos_token": START, "unk_token": ENDOFTEXT},
    ),
    "opt": Kind(
        byte_level, ("<pad>", "</s>"), "GPT2Tokenizer", "opt", ("</s>",), ("</s>",),
        config={
            "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>",
            "add_bos_token": True,
        },
        vocabulary_files=True,
    ),
    "llama 3": Kind(
        llama_3, (BEGIN, ENDOFTEXT, "<|eot|>"), FAST, "llama", (BEGIN,), (BEGIN,),
        config={"bos_token": BEGIN, "eos_token": "<|eot|>"},
    ),
    "llama 2": Kind(
        llama_2, SPM, "LlamaTokenizer", "llama", (S,), (S,), config=NAMED, adds_space=True
    ),
    "llama 2, not legacy": Kind(
        llama_2, SPM, "LlamaTokenizerFast", "llama", (S,), (S,),
        config=NAMED | {"legacy": False, "add_bos_token": True}, adds_space=True,
    ),
    "llama 2, fast": Kind(
        llama_2, SPM, FAST, "llama", (S,), (S,), config=NAMED, adds_space=True
    ),
    "llama 2, legacy": Kind(
        llama_2, SPM, "LlamaTokenizer", "llama", (S,), (S,), config=NAMED | {"legacy": True},
        adds_space=True,
    ),
    "mistral": Kind(
        llama_2, SPM, "LlamaTokenizer", "mistral", (S,), (S,),
        config=NAMED | {"add_bos_token": True, "add_eos_token": False}, adds_space=True,
    ),
    "gemma": Kind(gemma, GEMMA, "GemmaTokenizer", "gemma3_text", (BOS,), (BOS,)),
    "gemma, fast": Kind(
        gemma, GEMMA, FAST, "gemma3_text", (BOS,), (BOS,),
        config={"bos_token": BOS, "eos_token": "<eos>", "unk_token": "<unk>"},
    ),
    "unigram": Kind(
        unigram, ("<unk>", "</s>"), FAST, "llama", config={"unk_token": "<unk>"}, adds_space=True
    ),
    "unigram with bos": Kind(
        unigram, SPM, FAST, "llama", anchor=(S,), config=NAMED, adds_space=True
    ),
}  # fmt: skip


def loaded(kind: str, folder: Path) -> tuple[Tokenizer, Any]:
    """A tokenizer, and transformers' own from the same files."""
    KINDS[kind].save(folder)
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for _ in range(2))
    return Tokenizer(ours), theirs


def spelled(tokens: Sequence[Token]) -> str:
    """The text that the bytes of tokens spell together."""
    pieces = (base64.b64decode(t.bytes) if t.bytes else t.text.encode() for t in tokens)
    return b"".join(pieces).decode()


@pytest.mark.parametrize("kind", KINDS)
def test_ids_prefix_and_text_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """Prefix and ids are what `tokenizer(text)` gives, and the ids decode to the same text."""
    tokenizer, theirs = loaded(kind, tmp_path)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert list(ids) == theirs(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.text(ids) == theirs.decode(ids)
        if text:
            assert [*tokenizer.prefix, *ids] == theirs(text)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_prefix_and_anchor_are_the_special_tokens_of_the_family(kind: str, tmp_path: Path) -> None:
    """The anchor is the prefix, else <|endoftext|>, else `bos_token`, else nothing."""
    tokenizer, _ = loaded(kind, tmp_path)
    for ids, named in (
        (tokenizer.prefix, KINDS[kind].prefix),
        (tokenizer.anchor, KINDS[kind].anchor),
    ):
        assert tokenizer.tokens(ids) == tuple(
            Token(id, text, special=True) for id, text in zip(ids, named, strict=True)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_spell_the_text(kind: str, tmp_path: Path) -> None:
    """All spaces are kept, and the bytes of pieces join; at most an added space comes first."""
    tokenizer, _ = loaded(kind, tmp_path)
    for text in ("Hello", " Hello", "  Hello   Hello ", "\n日 🙂é", "<0x41> Hello"):
        said = spelled(tokenizer.tokens(tokenizer.encode(text)))
        if "<unk>" not in said:
            assert said in ({text, f" {text}"} if KINDS[kind].adds_space else {text})


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_cover_each_character_that_a_token_spells(kind: str, tmp_path: Path) -> None:
    """They lead through the text without gaps; only an added space is not in the characters."""
    tokenizer, _ = loaded(kind, tmp_path)
    for text in (" Hello  Hello ", "x日 🙂Hello\n", "Hello"):
        end = 0
        tokens = tokenizer.tokens(tokenizer.encode(text))
        for token, (start, stop) in zip(tokens, tokenizer.offsets(text), strict=True):
            assert start == end or token.text == "�"
            if token.text == "�":
                assert stop == start + 1
            elif token.special is UNSET:
                added = " " if start == 0 and KINDS[kind].adds_space else ""
                assert token.text in (text[start:stop], added + text[start:stop])
            end = stop
        assert end == len(text)


def test_an_added_space_covers_nothing(tmp_path: Path) -> None:
    """It is a token before the first character, which the next token covers alone."""
    tokenizer, _ = loaded("llama 2, fast", tmp_path)
    assert [token.text for token in tokenizer.tokens(tokenizer.encode("x日"))][:2] == [" ", "x"]
    assert tokenizer.offsets("x日") == [(0, 0), (0, 1), (1, 2), (1, 2), (1, 2)]
    assert tokenizer.offsets(" Hello") == [(0, 0), (0, 6)]
    assert tokenizer.offsets("  Hello") == [(0, 1), (1, 7)]


def test_a_query_is_given_its_own_space(tmp_path: Path) -> None:
    """It is tokenised as transformers tokenises a text without special tokens."""
    tokenizer, _ = loaded("llama 2", tmp_path)
    (id,) = tokenizer.encode("Hello")
    assert tokenizer.token(id) == Token(id, " Hello")
    assert tokenizer.text([id]) == "Hello"


@pytest.mark.parametrize(
    ("piece", "text", "encoded"),
    [
        ("▁Hello", " Hello", UNSET),
        ("▁", " ", UNSET),
        ("▁▁", "  ", UNSET),
        ("<0x0A>", "\n", UNSET),
        ("<0x41>", "A", UNSET),
        ("<0x7F>", "\x7f", UNSET),
        ("<0x80>", "�", "gA=="),
        ("<0xE2>", "�", "4g=="),
    ],
)
@pytest.mark.parametrize("kind", ["llama 2", "llama 2, fast", "gemma", "gemma, fast"])
def test_a_token_is_echoed_as_it_stands_inside_a_text(
    kind: str, piece: str, text: str, encoded: Any, tmp_path: Path
) -> None:
    """Spaces at its beginning stay, and a byte is its character, or � with the byte."""
    tokenizer, theirs = loaded(kind, tmp_path)
    id = theirs.convert_tokens_to_ids(piece)
    assert tokenizer.token(id) == Token(id, text, bytes=encoded)
    assert theirs.decode([*tokenizer.encode("x"), id]).endswith(text)


def test_tokens_that_are_special_or_added_are_echoed_as_spelled(tmp_path: Path) -> None:
    """A special token that no role names is special; an added token of the model is not."""
    tokenizer, theirs = loaded("llama 3", tmp_path)
    (unnamed,) = tokenizer.encode(ENDOFTEXT)
    assert unnamed not in theirs.all_special_ids
    assert tokenizer.token(unnamed) == Token(unnamed, ENDOFTEXT, special=True)
    (tmp_path / "gemma").mkdir()
    tokenizer, _ = loaded("gemma, fast", tmp_path / "gemma")
    (extra,) = tokenizer.encode("<extra>")
    assert tokenizer.token(extra) == Token(extra, "<extra>")


def test_an_added_token_is_not_read_as_bytes(tmp_path: Path) -> None:
    """Its é is an é, though é is also how a byte-level vocabulary writes the byte E9."""
    KINDS["llama 3"].save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs.add_tokens(["<é>"])
    tokenizer = Tokenizer(theirs)
    (id,) = tokenizer.encode("<é>")
    assert tokenizer.token(id) == Token(id, "<é>")


TEMPLATES = {
    "begins and ends": (
        processors.TemplateProcessing(
            single="<s> $A </s>", pair="$A $B", special_tokens=[("<s>", 1), ("</s>", 2)]
        ),
        ("<s>",),
    ),
    "begins twice": (
        processors.TemplateProcessing(
            single="</s> <s> $A", pair="$A $B", special_tokens=[("<s>", 1), ("</s>", 2)]
        ),
        ("</s>", "<s>"),
    ),
    "ends": (
        processors.TemplateProcessing(
            single="$A </s>", pair="$A $B", special_tokens=[("</s>", 2)]
        ),
        (),
    ),
    "roberta": (processors.RobertaProcessing(("</s>", 2), ("<s>", 1)), ("<s>",)),
    "nothing": (None, ()),
}  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_prefix_has_no_token_from_behind_the_text(template: str, tmp_path: Path) -> None:
    """An appended </s> is not in it; where only that is added, the anchor is `bos_token`."""
    backend = gemma(*SPM)
    backend.post_processor, prefix = TEMPLATES[template]
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": FAST} | NAMED
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path) for _ in range(2))
    tokenizer = Tokenizer(ours)
    assert tuple(theirs.convert_ids_to_tokens(tokenizer.prefix)) == prefix
    assert tuple(theirs.convert_ids_to_tokens(tokenizer.anchor)) == (prefix or ("<s>",))
    ids = tokenizer.encode("Hello Hello")
    assert theirs("Hello Hello")["input_ids"][: len(prefix) + len(ids)] == [*tokenizer.prefix, *ids]


@pytest.mark.parametrize(("begin", "end"), [(True, True), (False, True), (False, False)])
def test_the_prefix_follows_the_options_of_the_config(
    begin: bool, end: bool, tmp_path: Path
) -> None:
    """`add_bos_token` and `add_eos_token` count as far as transformers heeds them."""
    kind = KINDS["opt"]
    options = {"add_bos_token": begin, "add_eos_token": end}
    replace(kind, config=kind.config | options).save(tmp_path)
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path) for _ in range(2))
    tokenizer = Tokenizer(ours)
    assert theirs("Hello")["input_ids"] == [
        *tokenizer.prefix,
        *tokenizer.encode("Hello"),
        *[theirs.eos_token_id] * end,
    ]
    assert len(tokenizer.prefix) == begin
    assert tokenizer.anchor == (theirs.bos_token_id,)
