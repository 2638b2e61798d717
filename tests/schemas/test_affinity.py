"""The key of a body's context, by which a proxy chooses the replica."""

from __future__ import annotations

import hashlib

import pytest

from schemas.affinity import context_key

KEY = hashlib.blake2b(b"The capital", digest_size=8).hexdigest()


@pytest.mark.parametrize(
    "fields",
    [
        {"context": "The capital", "query": " is"},
        {"context": "The capital", "query": [1], "layers": [0]},
        {"prompt": " is", "patch": {"context": "The capital"}},
        {"prompts": ["The capital", "other"]},
        {"prompt": "The capital", "patch": {"adapter": "1"}},
    ],
)
def test_bodies_with_the_same_context_have_the_same_key(fields: dict[str, object]) -> None:
    """Neither the query, nor the resource, nor its options change the key."""
    assert context_key(fields) == KEY


def test_the_whole_context_decides_and_not_its_beginning() -> None:
    """Two contexts that differ at their end have different keys, as text and as ids."""
    assert context_key({"context": "a" * 5000 + "b"}) != context_key({"context": "a" * 5000 + "c"})
    assert context_key({"context": [7] * 500 + [1]}) != context_key({"context": [7] * 500 + [2]})


@pytest.mark.parametrize(
    "fields", [{}, {"context": None}, {"context": 3}, {"prompts": []}, {"patch": "x"}]
)
def test_a_body_without_a_context_has_no_key(fields: dict[str, object]) -> None:
    """A malformed body has no key either; the service refuses it later."""
    assert context_key(fields) is None


def test_a_lone_surrogate_has_a_key() -> None:
    """JSON can contain half a surrogate pair, which strict UTF-8 cannot encode."""
    assert context_key({"context": "\ud800"}) is not None
