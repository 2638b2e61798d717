"""What the OpenAPI document says of an operation: its body, its answers and its problems."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from schemas.common import Values, adapter
from schemas.problems import PROBLEMS, Problem
from service.api.problems import MEDIA_TYPE
from service.api.tensors import JSON, SAFETENSORS

ASKED = tuple(code for code in PROBLEMS if code != "not_found")
"""The problems of a resource that computes."""
ANYWHERE = ("request_timeout", "unknown_host", "headers_too_large")
"""The problems of a request before it is looked at."""
PACKED = """Tensors by their path, such as `updates.0.factors.input`. The JSON answer is
`__metadata__["response"]`, with {dtype, shape, tensor: path} in each tensor's place."""
GENERIC = f"__{Values.__name__}_"
COMPONENTS = "#/components/schemas/"


def operation(body: type[BaseModel]) -> dict[str, Any]:
    """Keywords of a route whose body is read from bytes, so that FastAPI does not see it."""
    schema = body.model_json_schema(ref_template=COMPONENTS + "{model}")
    content = {JSON: {"schema": schema}}
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
        "response_model": None,
    }


def answers(
    answer: Any, *, tensors: bool = True, problems: tuple[str, ...] = ASKED
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: its answer, and each status that a problem may have."""
    documented: dict[int | str, dict[str, Any]] = {200: {"model": answer} if answer else {}}
    if tensors:
        documented[200]["content"] = {
            SAFETENSORS: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": PACKED,
                }
            }
        }
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
                "Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}
            }
    return documented


def describe(app: FastAPI, *, locked: bool) -> None:
    """Give the OpenAPI document the schemas that FastAPI does not see: bodies and problems.

    The first line of a handler's docstring is the operation's summary, the rest its description.

    Args:
        app: Whose document it is.
        locked: Whether it has keys; where it has none, the document asks for none.
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
            for operations in document["paths"].values():
                for said in operations.values():
                    summary, _, rest = said["description"].partition("\n")
                    said["summary"] = summary.rstrip(".")
                    said["description"] = rest.strip() or summary
                    if not locked:
                        said.pop("security", None)
            if not locked:
                document["components"].pop("securitySchemes", None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _lift_definitions(node: Any, schemas: dict[str, Any]) -> None:
    """Move every `$defs` of an inlined schema to the components, where its references point."""
    if isinstance(node, dict):
        for name, schema in node.pop("$defs", {}).items():
            schemas.setdefault(name, schema)
        for child in list(node.values()):
            _lift_definitions(child, schemas)
    elif isinstance(node, list):
        for child in node:
            _lift_definitions(child, schemas)
