"""Affinity: the key that sends requests about the same context to the same replica."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CONTEXT_HEADER = "X-Deltaw-Context"
"""Header with the key of a request's context. A proxy can read it without the body."""
KEY_BYTES = 8


def context_key(fields: Mapping[str, Any]) -> str | None:
    """Return the key of a body's context: the hexadecimal BLAKE2b hash of its whole text or ids.

    The context is the field `context`, the context of `patch`, the first of `prompts`, or `prompt`.
    A hash of its beginning alone would send all contexts of a sweep that share a beginning to one
    replica.

    Args:
        fields: Fields of a body, parsed from JSON. They need not be valid.

    Returns:
        16 hexadecimal digits; None if the body has no context.
    """
    patch, prompts = fields.get("patch"), fields.get("prompts")
    candidates = (
        fields.get("context"),
        patch.get("context") if isinstance(patch, Mapping) else None,
        prompts[0] if isinstance(prompts, list) and prompts else None,
        fields.get("prompt"),
    )
    context = next((one for one in candidates if isinstance(one, str | list)), None)
    if context is None:
        return None
    text = context if isinstance(context, str) else json.dumps(context, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).hexdigest()
