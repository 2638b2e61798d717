"""Questions that the tests ask the explorer page, and the service's answers to compare with."""

from __future__ import annotations

from typing import Any

import httpx

from schemas.pairs import SEED_CONTEXT, SEED_QUERY

VIEWS = (
    "equivalence",
    "next-tokens",
    "generate",
    "tokens",
    "updates",
    "trajectory",
    "attribution",
)
CHARTS = tuple(view for view in VIEWS if view != "tokens")
SENTENCES = {
    "context": "The capital of Malaysia is Kuala Lumpur. The capital of USA is Washington D.C.",
    "query": " The capital of Germany is",
}
SEED = {"context": SEED_CONTEXT, "query": SEED_QUERY}
LABELS = {
    "context": "cat: animal\nred: colour\nbread: food\n",
    "query": "tiger:",
    "queries": "horse:\ngreen:\nbutter:\ncow:",
    "held_out": "mouse:\ngrey:\nsoup:\nrabbit:\ngold:\ncake:\neagle:\nsilver:",
}
"""Queries of a static adapter, and the eight that its figures need."""


def answer(api: httpx.Client, path: str, **body: Any) -> Any:
    """Return the API's answer to a question."""
    response = api.post(f"/v1/{path}", json=body)
    assert response.is_success, response.text
    return response.json()


def close(shown: str, told: float) -> bool:
    """Whether the page's number is the API's, up to the rounding of two runs."""
    return abs(float(shown) - told) <= 1e-3 * abs(told) + 1e-9
