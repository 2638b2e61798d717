"""The OpenAPI document: the body, the answers and the problems of each operation."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from schemas.common import Values, adapter
from schemas.lines import Line
from schemas.problems import PROBLEMS, Problem
from service.api.heads import JSON, NDJSON, SAFETENSORS
from service.api.refusals import MEDIA_TYPE

STORED = ("unknown_adapter", "other_weights", "storage_full")
"""Problems of resources that use or store adapters."""
GENERATED = ("unknown_model", "no_rows_patched")
"""Problems of resources that generate text."""
ASKED = tuple(code for code in PROBLEMS if code not in ("not_found", *STORED, *GENERATED))
"""Problems of a resource that computes."""
ANYWHERE = ("malformed_request", "request_timeout", "unknown_host", "headers_too_large")
"""Problems that the service finds before it routes a request."""
PACKED = """A safetensors file. Each tensor is named by its path in the answer, such as
`updates.0.input`. `__metadata__["response"]` holds the JSON answer, with
`{"dtype", "shape", "tensor": path}` in each tensor's place."""
BODIES = """One body per line, each as for `application/json`, separated by newlines. Blank lines
are skipped. Each line means what it would mean as its own request, and gets one answer line."""
GENERIC = f"__{Values.__name__}_"
"""Suffix that pydantic adds to the names of generic answers."""
COMPONENTS = "#/components/schemas/"


def operation(body: type[BaseModel], *, lines: bool = True) -> dict[str, Any]:
    """Return the keywords of a route that reads its body from bytes, unseen by FastAPI.

    Args:
        body: Model of the body.
        lines: Whether the route reads NDJSON too.
    """
    content = {JSON: {"schema": body.model_json_schema(ref_template=COMPONENTS + "{model}")}}
    if lines:
        content[NDJSON] = {"schema": {"type": "string", "description": BODIES}}
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
        "response_model": None,
    }


def answers(
    answer: Any, *, tensors: bool = True, lines: bool = False, problems: tuple[str, ...] = ASKED
) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: its answer, and the problems by their status.

    Args:
        answer: Type of the answer; None if it is not JSON.
        tensors: Whether it may be a safetensors file.
        lines: Whether the route reads NDJSON too.
        problems: Codes of the problems that the route may answer with.
    """
    documented: dict[int | str, dict[str, Any]] = {200: {"model": answer} if answer else {}}
    if tensors:
        packed = {"type": "string", "format": "binary", "description": PACKED}
        documented[200].setdefault("content", {})[SAFETENSORS] = {"schema": packed}
    if lines:
        schema = adapter(Line[answer]).json_schema(ref_template=COMPONENTS + "{model}")
        documented[200].setdefault("content", {})[NDJSON] = {"schema": schema}
    for code in dict.fromkeys((*ANYWHERE, *problems)):
        status = PROBLEMS[code].status
        said = documented.setdefault(
            status,
            {
                "description": "",
                "content": {MEDIA_TYPE: {"schema": {"$ref": COMPONENTS + Problem.__name__}}},
            },
        )
        said["description"] += f"`{code}`: {PROBLEMS[code].meaning}\n\n"
        if status in (429, 503):
            said["headers"] = {
                "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}
            }
    return documented


def describe(app: FastAPI, *, locked: bool) -> None:
    """Complete the OpenAPI document with the bodies and problems that FastAPI does not see.

    The first line of a handler's docstring becomes the operation's summary, the rest its
    description.

    Args:
        app: The application that the document describes.
        locked: Whether the service has API keys. Without any, the document asks for none.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            # A generic answer is named after its type variable too: `Update__Values_`.
            document = json.loads(json.dumps(generate()).replace(GENERIC, ""))
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas[Problem.__name__] = adapter(Problem).json_schema(
                ref_template=COMPONENTS + "{model}"
            )
            _lift_definitions(document, schemas)
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for operations in document["paths"].values():
                for said in operations.values():
                    summary, _, rest = said["description"].partition("\n")
                    said["summary"] = summary.rstrip(".")
                    said["description"] = rest.strip() or summary
                    # FastAPI documents its own 422 wherever it sees a parameter.
                    if MEDIA_TYPE not in said["responses"].get("422", {}).get("content", {}):
                        said["responses"].pop("422", None)
                    if not locked:
                        said.pop("security", None)
            if not locked:
                document["components"].pop("securitySchemes", None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _lift_definitions(node: Any, schemas: dict[str, Any]) -> None:
    """Move the `$defs` of each inlined schema to the components, where its references point."""
    if isinstance(node, dict):
        for name, schema in node.pop("$defs", {}).items():
            schemas.setdefault(name, schema)
        for child in list(node.values()):
            _lift_definitions(child, schemas)
    elif isinstance(node, list):
        for child in node:
            _lift_definitions(child, schemas)
