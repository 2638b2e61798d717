"""docs/openapi.json is the served document, and the reference page contains all of it."""

from __future__ import annotations

import json
import re

import httpx

from docs.openapi import FILE, text
from docs.reference import kind, page
from schemas.problems import PROBLEMS

DOCUMENT = json.loads(FILE.read_text(encoding="utf-8"))
PAGE = page(DOCUMENT)


def test_committed_document_is_the_generated_one() -> None:
    """docs/openapi.json equals the document that the application generates (`make openapi`)."""
    assert FILE.read_text(encoding="utf-8") == text()


def test_committed_document_is_the_served_one(tiny_client: httpx.Client) -> None:
    """docs/openapi.json equals the answer of a running service at /openapi.json."""
    assert tiny_client.get("/openapi.json").json() == DOCUMENT


def test_reference_has_every_path_and_field() -> None:
    """Each path has a heading; each field of each object and each body has a row."""
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


def test_type_links_lead_to_headings() -> None:
    """Every link of a type leads to a heading of the page."""
    anchors = {heading.lower() for heading in re.findall(r"^#+ (.+)$", PAGE, re.M)}
    assert set(re.findall(r"\]\(#(\w+)\)", PAGE)) <= anchors


def test_reference_lists_every_problem_code() -> None:
    """The table has each problem code with its status."""
    rows = {code: int(status) for status, code in re.findall(r"^\| (\d+) \| `(\w+)`", PAGE, re.M)}
    assert rows == {code: each.status for code, each in PROBLEMS.items()}


def test_kind_describes_a_type_in_words() -> None:
    """References become links, choices are joined, and bounds are named unless they are huge."""
    ids = {"type": "array", "items": {"type": "integer", "maximum": 2.0**53}, "minItems": 1}
    assert kind({"anyOf": [{"type": "string"}, ids, {"type": "null"}]}) == (
        "string or list of integer (at least 1) or null"
    )
    assert kind({"$ref": "#/components/schemas/Tensor"}) == "[Tensor](#tensor)"
    assert kind({"enum": ["json", "base64"]}) == '`"json"` or `"base64"`'
    assert kind({"type": "array", "prefixItems": [{"type": "integer"}] * 2}) == "[integer, integer]"
