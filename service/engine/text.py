"""Convert text to tokens and back, so that a caller sees exactly what the model was given."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from schemas.common import Token

ANCHOR = "<|endoftext|>"
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


class Tokenizer:
    """The checkpoint's own tokenizer.

    One text always gives the same ids: those of transformers with `add_special_tokens=False`.
    Truncation, padding and BPE dropout that a file switches on are switched off.

    Args:
        tokenizer: A tokenizer of transformers with a `tokenizers` backend, which is changed.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._fast = tokenizer.backend_tokenizer
        self._fast.no_truncation()
        self._fast.no_padding()
        # The one random option that a file can hold: Unigram's sampling is not stored.
        if getattr(self._fast.model, "dropout", None) is not None:
            self._fast.model.dropout = None
        self._specials = frozenset(tokenizer.all_special_ids)
        self._byte_level = "ByteLevel" in str(self._fast.decoder)
        self._added = frozenset(self._fast.get_added_tokens_decoder())
        state = f"{self._fast.to_str()} {self._fast.encode_special_tokens}"
        self.digest = f"sha256:{hashlib.sha256(state.encode()).hexdigest()}"
        self.size: int = self._fast.get_vocab_size(with_added_tokens=True)
        self.anchor: int | None = self._fast.token_to_id(ANCHOR)

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of a text.

        A text that spells a special token becomes it, unless the checkpoint's tokenizer_config.json
        says `split_special_tokens`.
        """
        return tuple(self._fast.encode(text, add_special_tokens=False).ids)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The half-open range of characters that each token of a text covers."""
        return list(self._fast.encode(text, add_special_tokens=False).offsets)

    def tokens(self, ids: Sequence[int]) -> tuple[Token, ...]:
        """The tokens of these ids, as they are echoed."""
        return tuple(self.token(i) for i in ids)

    def token(self, id: int) -> Token:
        """The token of one id, as it is echoed."""
        piece = self._fast.id_to_token(id)
        if id in self._specials:
            return Token(id, piece, special=True)
        if piece is None or id in self._added:
            return Token(id, piece or "")
        if not self._byte_level or any(character not in _BYTES for character in piece):
            return Token(id, self._fast.decode([id], skip_special_tokens=False))
        spelled = bytes(_BYTES[character] for character in piece)
        try:
            return Token(id, spelled.decode())
        except UnicodeDecodeError:
            encoded = base64.b64encode(spelled).decode()
            return Token(id, spelled.decode(errors="replace"), bytes=encoded)

    def text(self, ids: Sequence[int]) -> str:
        """The text that the ids spell together."""
        return str(self._fast.decode(list(ids), skip_special_tokens=False))
