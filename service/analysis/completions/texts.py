"""The text of a completion, which grows token by token."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Sequence

from schemas.common import UNSET, Token
from service.engine.text import Tokenizer


class GrowingText:
    """Text of which a part is final: what no further token can change.

    The rest is held back: bytes that are not a whole character yet, and characters with which a
    stop text may begin.

    Args:
        tokenizer: Spells the tokens.
        stops: Texts that end the text. It ends before them.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.characters = 0
        self.stopped = False

    def begin(self, ids: Sequence[int]) -> tuple[str, list[int]]:
        """Read tokens before the text. Bytes of an unfinished character at their end belong to the
        first character of the text.

        Returns:
            What they spell, and the number of characters before each.
        """
        spelled, before = "", []
        for id in ids:
            before.append(len(spelled))
            spelled += self._decode(self._tokenizer.token(id))
        return spelled, before

    def add(self, id: int) -> str:
        """The characters that become final with a token."""
        return self._final(self._decode(self._tokenizer.token(id)))

    def end(self) -> str:
        """The characters that become final because no token follows."""
        if self.stopped:
            return ""
        final = self._final(self._decoder.decode(b"", True))
        return final if self.stopped else final + self._held

    def _decode(self, token: Token) -> str:
        spelled = token.text.encode() if token.bytes is UNSET else base64.b64decode(token.bytes)
        found = self._decoder.decode(spelled)
        self.characters += len(found)
        return found

    def _final(self, found: str) -> str:
        """Move characters out of what is held back, up to what a stop text may begin with."""
        self._held += found
        ends = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        self.stopped = bool(ends)
        held = 0 if self.stopped else max((_overlap(self._held, s) for s in self._stops), default=0)
        at = min(ends) if self.stopped else len(self._held) - held
        final, self._held = self._held[:at], self._held[at:]
        return final


def _overlap(text: str, stop: str) -> int:
    """Number of last characters of a text that a stop text begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def token_text(token: Token) -> str:
    """A token as the OpenAI API spells it: bytes that are not whole UTF-8 as `bytes:\\xf0`."""
    if token.bytes is UNSET:
        return token.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in base64.b64decode(token.bytes))
