"""Questions of the load: weight updates with recurring contexts, or each with a new one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.affinity import CONTEXT_HEADER, context_key

VOCABULARY = 5000
"""Upper limit of the random token ids. The vocabulary of the bundled model is larger."""
Body = Mapping[str, Any]


def token_ids(count: int, seed: object, vocabulary: int = VOCABULARY) -> list[int]:
    """Return random token ids below `vocabulary`. Equal seeds give equal ids."""
    return random.Random(str(seed)).choices(range(vocabulary), k=count)


def questions(
    contexts: int = 8,
    queries: int = 20,
    tokens: int = 400,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
) -> list[Body]:
    """Return bodies of weight updates: each context with each query, in random order.

    Args:
        contexts: Number of contexts.
        queries: Number of queries of one token for each context.
        tokens: Tokens of a context.
        seed: Seed of the contexts. A new seed gives contexts that no replica has cached.
        vocabulary: Upper limit of the token ids.
    """
    known = [token_ids(tokens, f"{seed}-{i}", vocabulary) for i in range(contexts)]
    bodies: list[Body] = [
        {"context": context, "query": [query], "layers": [-1]}
        for query in range(queries)
        for context in known
    ]
    random.Random(seed).shuffle(bodies)
    return bodies


def fresh(tokens: int = 400, seed: int = 0) -> Iterator[Body]:
    """Yield bodies of weight updates without end, each with a context of its own."""
    number = 0
    while True:
        context = token_ids(tokens, f"fresh-{seed}-{number}")
        yield {"context": context, "query": [7, 8, 9, 10], "layers": [-1]}
        number += 1


def affinity(body: Body) -> dict[str, str]:
    """Return the header with the key of a body's context; no header if it has no context."""
    key = context_key(body)
    return {} if key is None else {CONTEXT_HEADER: key}
