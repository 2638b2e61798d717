"""Convert text to tokens and back, so that a caller sees exactly what the model was given."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from schemas.common import Token

ANCHOR = "<|endoftext|>"
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """The checkpoint's own tokenizer.

    One text always gives the same ids: those of transformers with `add_special_tokens=False`.
    Truncation, padding and BPE dropout that a file switches on are switched off.

    Args:
        tokenizer: A tokenizer of transformers with a `tokenizers` backend, which is changed.
    """

    prefix: tuple[int, ...]
    """Ids of the special tokens that transformers puts before a text (`add_special_tokens=True`):
    none for GPT-2, `<bos>` for Gemma. Special tokens that it appends are left out."""
    anchor: tuple[int, ...]
    """Ids that the baseline `anchored` begins both runs with: `prefix`, else `<|endoftext|>`, else
    the tokenizer's `bos_token`, else none."""
    end_tokens: frozenset[int]
    """Id of the tokenizer's `eos_token`, if it has one."""

    def __init__(self, tokenizer: Any) -> None:
        self._fast = tokenizer.backend_tokenizer
        self._fast.no_truncation()
        self._fast.no_padding()
        # The one random option that a file can hold: Unigram's sampling is not stored.
        if getattr(self._fast.model, "dropout", None) is not None:
            self._fast.model.dropout = None
        state = f"{self._fast.to_str()} {self._fast.encode_special_tokens}"
        self.digest = f"sha256:{hashlib.sha256(state.encode()).hexdigest()}"
        self.size: int = self._fast.get_vocab_size(with_added_tokens=True)
        self.prefix = self._prefix()
        others = (self._fast.token_to_id(ANCHOR), tokenizer.bos_token_id)
        self.anchor = self.prefix or tuple(id for id in others if id is not None)[:1]
        self.end_tokens = frozenset(id for id in (tokenizer.eos_token_id,) if id is not None)
        # It may cut spaces off the offsets (Llama 3). The ids without `prefix` do not depend on it.
        self._fast.post_processor = None
        added = self._fast.get_added_tokens_decoder()
        special = {id for id, token in added.items() if token.special}
        self._specials = frozenset(special.union(tokenizer.all_special_ids))
        # A token that the model's vocabulary has too is spelled as there: Gemma's ▁▁ is two spaces.
        in_model = self._fast.model.token_to_id
        self._added = frozenset(id for id in added if in_model(added[id].content) is None)
        self._decoder = self._fast.decoder
        self._byte_level = "ByteLevel" in str(self._decoder)
        self._byte_fallback = "ByteFallback" in str(self._decoder)

    def _prefix(self) -> tuple[int, ...]:
        encoding = self._fast.encode("a")
        text = encoding.sequence_ids  # None for a token that is not part of the text
        return tuple(encoding.ids[: text.index(0)]) if 0 in text else ()

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of a text, without `prefix`.

        A text that spells a special token becomes it, unless the checkpoint's tokenizer_config.json
        says `split_special_tokens`. A tokenizer that puts a space before each text (Llama 2) does
        so here too: "Berlin" gives `▁Berlin`, even if it is a query that follows a context.
        """
        return tuple(self._fast.encode(text, add_special_tokens=False).ids)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The half-open range of characters that each token of a text covers.

        Tokens that are bytes of one character all cover that character. A token that is only the
        space that the tokenizer puts before a text covers nothing.
        """
        encoding = self._fast.encode(text, add_special_tokens=False)
        offsets: list[tuple[int, int]] = list(encoding.offsets)
        # tokenizers gives that space the first character, which the next token covers too.
        for i, (start, _) in enumerate(offsets[:-1]):
            if offsets[i + 1][0] == start and self.token(encoding.ids[i]).text == " ":
                offsets[i] = (start, start)
        return offsets

    def tokens(self, ids: Sequence[int]) -> tuple[Token, ...]:
        """The tokens of these ids, as they are echoed."""
        return tuple(self.token(i) for i in ids)

    def token(self, id: int) -> Token:
        """The token of one id, with the text that it adds inside a text.

        `▁Berlin` is " Berlin" with its space, even if the tokenizer put that space before the
        text: the joined texts of the tokens then have one space more than the text.
        """
        piece = self._fast.id_to_token(id)
        if id in self._specials:
            return Token(id, piece, special=True)
        if piece is None or id in self._added or self._decoder is None:
            return Token(id, piece or "")
        if self._byte_level and all(character in _BYTES for character in piece):
            spelled = bytes(_BYTES[character] for character in piece)
        elif self._byte_fallback and (byte := _FALLBACK.fullmatch(piece)):
            spelled = bytes.fromhex(byte[1])
        else:
            # Decoders cut a space off the beginning of a text, so the piece is not decoded alone.
            return Token(id, self._decoder.decode(["a", piece]).removeprefix("a"))
        try:
            return Token(id, spelled.decode())
        except UnicodeDecodeError:
            encoded = base64.b64encode(spelled).decode()
            return Token(id, spelled.decode(errors="replace"), bytes=encoded)

    def text(self, ids: Sequence[int]) -> str:
        """The text that the ids spell together, as transformers decodes it.

        A tokenizer that puts a space before each text takes the first space away again.
        """
        return str(self._fast.decode(list(ids), skip_special_tokens=False))
