"""The OpenAPI document in docs/ is the served one, and the reference page says all that it says."""

from __future__ import annotations

import json
import re

import httpx

from docs.openapi import FILE, text
from docs.reference import kind, page
from schemas.problems import PROBLEMS

DOCUMENT = json.loads(FILE.read_text(encoding="utf-8"))
PAGE = page(DOCUMENT)


def test_the_committed_document_is_the_applications() -> None:
    """docs/openapi.json is what the application generates; `make openapi` writes it."""
    assert FILE.read_text(encoding="utf-8") == text()


def test_the_committed_document_is_the_served_one(tiny_client: httpx.Client) -> None:
    """docs/openapi.json is what a running service answers at /openapi.json."""
    assert tiny_client.get("/openapi.json").json() == DOCUMENT


def test_every_path_and_field_is_there() -> None:
    """Each path has a heading, each field of each object and each body has a row."""
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)
    headings = re.findall(r"^#+ (.+)$", PAGE, re.M)
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in headings
            body = operation.get("requestBody", {"content": {}})["content"]
            for field in body.get("application/json", {"schema": {}})["schema"].get(
                "properties", ()
            ):
                assert field in rows
    unused = {"HTTPValidationError", "ValidationError"}
    for name, schema in DOCUMENT["components"]["schemas"].items():
        if name not in unused:
            assert set(schema["properties"]) <= set(rows), name


def test_links_lead_to_headings() -> None:
    """What a type links to is a heading of the page."""
    anchors = {heading.lower() for heading in re.findall(r"^#+ (.+)$", PAGE, re.M)}
    assert set(re.findall(r"\]\(#(\w+)\)", PAGE)) <= anchors


def test_every_problem_is_in_the_table() -> None:
    """Each problem's code has a row with its status."""
    rows = {code: int(status) for status, code in re.findall(r"^\| (\d+) \| `(\w+)`", PAGE, re.M)}
    assert rows == {code: each.status for code, each in PROBLEMS.items()}


def test_types_are_said_in_words() -> None:
    """References are links, choices are joined, bounds are named, huge bounds are not."""
    ids = {"type": "array", "items": {"type": "integer", "maximum": 2.0**53}, "minItems": 1}
    assert kind({"anyOf": [{"type": "string"}, ids, {"type": "null"}]}) == (
        "string or list of integer (at least 1) or null"
    )
    assert kind({"$ref": "#/components/schemas/Tensor"}) == "[Tensor](#tensor)"
    assert kind({"enum": ["json", "base64"]}) == '`"json"` or `"base64"`'
    assert kind({"type": "array", "prefixItems": [{"type": "integer"}] * 2}) == "[integer, integer]"
