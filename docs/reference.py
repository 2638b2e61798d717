"""Build the API reference: every path of an OpenAPI document with its fields and problems."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]
COMPONENT = re.compile(r"#/components/schemas/(\w+)")
PROBLEM = re.compile(r"^`(\w+)`: (.+)$", re.M)
JSON = "application/json"
EXACT = 2**53
"""Bound of every integer in JSON. The page does not show it."""
WITH_TENSORS = "application/vnd.safetensors"
INTRODUCTION = """# API reference

This page is made from the [OpenAPI document](openapi.json) that the service serves at
`/openapi.json`. The service's `/docs` shows the same document with a form for each request. Bodies
are JSON. The service refuses unknown fields, values of another type, and NaN. An answer leaves out
the fields that the request did not ask for.

**Equal bits.** On a CPU, with the same number of threads, `batching = off` and
`prefix_cache_bytes = 0`, the same request gives the same bits, alone or beside other requests.
Otherwise answers to the same request agree only to rounding. In float32, captured vectors agree to
5e-6 relative, and a quantity formed from a difference to 5e-6 × (‖n_C‖ + ‖n‖)/‖Δn‖. Numbers that
are rounding errors, such as `relative_error`, agree only in being within their gate.
[Operations](operations.md#reproducibility) has the details.

"""


def page(document: Schema) -> str:
    """Return the whole reference in Markdown.

    Args:
        document: An OpenAPI document.
    """
    schemas = document["components"]["schemas"]
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    uses = Counter(name for _, _, operation in operations for name in _objects(operation, schemas))
    shared = [name for name in schemas if uses[name] > 1]
    parts = [INTRODUCTION]
    for method, path, operation in operations:
        parts += _operation(method, path, operation, schemas, shared)
    parts.append("## Objects of several resources\n\n")
    for name in shared:
        parts += _object(name, schemas[name])
    parts += _problems([operation for _, _, operation in operations], schemas)
    return "".join(parts)


def _operation(
    method: str, path: str, operation: Schema, schemas: Schema, shared: Sequence[str]
) -> Iterator[str]:
    """Yield the section of one path and method."""
    yield f"## {method} {path}\n\n**{operation['summary']}.** "
    yield _prose(operation["description"]) + "\n\n"
    if parameters := operation.get("parameters"):
        yield _table([(each["name"], each["schema"], "") for each in parameters])
    if "requestBody" in operation:
        body = _body(operation)
        choice = "" if "properties" in body else f"{kind(body)}\n\n"
        yield f"**Request**\n\n{choice}{_fields(body, 'required')}"
        for example in body.get("examples", ()):
            yield f"```json\n{_laid_out(example)}\n```\n\n"
    answer = _answer(operation)
    top = COMPONENT.search(answer.get("$ref", ""))
    if top:
        yield f"**Answer.** {_prose(schemas[top[1]].get('description', ''))}\n\n"
        yield _fields(schemas[top[1]])
    packed = _content(operation).get(WITH_TENSORS, {}).get("schema", {})
    if "description" in packed:
        yield f"With `Accept: {WITH_TENSORS}`: {_prose(packed['description'])}\n\n"
    for name in _objects(operation, schemas):
        if name not in shared and (top is None or name != top[1]):
            yield from _object(name, schemas[name])
    if codes := [code for code, _, _ in _codes(operation)]:
        yield f"[Problems](#problems): {', '.join(f'`{code}`' for code in codes)}\n\n"


def _object(name: str, schema: Schema) -> Iterator[str]:
    """Yield the section of a named object."""
    yield f"#### {name}\n\n{_prose(schema.get('description', ''))}\n\n{_fields(schema)}"


def _problems(operations: Sequence[Schema], schemas: Schema) -> Iterator[str]:
    """Yield the fields of a problem, and the table of its codes."""
    yield "## Problems\n\n"
    yield "`application/problem+json` ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)):\n\n"
    yield _fields(schemas["Problem"])
    for name in _named(schemas["Problem"], schemas):
        yield from _object(name, schemas[name])
    yield "#### Codes\n\n"
    codes = sorted({each for operation in operations for each in _codes(operation)}, key=_status)
    yield "| status | code | meaning |\n|---|---|---|\n"
    for code, status, meaning in codes:
        yield f"| {status} | `{code}` | {_prose(meaning)} |\n"


def _status(code: tuple[str, str, str]) -> str:
    return code[1]


def _codes(operation: Schema) -> list[tuple[str, str, str]]:
    """Return code, status and meaning of each problem of an operation."""
    return [
        (code, status, meaning)
        for status, response in operation["responses"].items()
        for code, meaning in PROBLEM.findall(response["description"])
    ]


def _answer(operation: Schema) -> Schema:
    """Return the schema of an operation's JSON answer, or an empty one."""
    found: Schema = _content(operation).get(JSON, {}).get("schema", {})
    return found


def _content(operation: Schema) -> Schema:
    """Return the media types of an operation's answer. One that only deletes has none."""
    found: Schema = operation["responses"].get("200", {}).get("content", {})
    return found


def _body(operation: Schema) -> Schema:
    """Return the schema of an operation's JSON body, or an empty one."""
    content = operation.get("requestBody", {}).get("content", {})
    found: Schema = content.get(JSON, {}).get("schema", {})
    return found


def _objects(operation: Schema, schemas: Schema) -> list[str]:
    """Return the names of all objects of an operation's body and answer, each once."""
    named = _named(_body(operation), schemas) + _named(_answer(operation), schemas)
    return [*dict.fromkeys(named)]


def _named(schema: Schema, schemas: Schema) -> list[str]:
    """Return the names of all objects within a schema, each once, in order of appearance."""
    names: list[str] = []
    waiting = COMPONENT.findall(json.dumps(schema))
    while waiting:
        name = waiting.pop(0)
        if name not in names:
            names.append(name)
            waiting = COMPONENT.findall(json.dumps(schemas[name])) + waiting
    return names


def _fields(schema: Schema, needed: str = "") -> str:
    """Return the table of an object's fields.

    Args:
        schema: The object's schema.
        needed: Text in the default column of a required field.
    """
    required = schema.get("required", ())
    return _table(
        [
            (name, field, needed if name in required else _default(field))
            for name, field in schema.get("properties", {}).items()
        ]
    )


def _default(field: Schema) -> str:
    """Return a field's default as code; empty for null, which only means that it is optional."""
    return "" if field.get("default") is None else f"`{json.dumps(field['default'])}`"


def _table(fields: Sequence[tuple[str, Schema, str]]) -> str:
    """Return a table of fields with type, default and description, without empty columns."""
    rows = [
        (f"`{name}`", kind(field), default, _prose(field.get("description", "")))
        for name, field, default in fields
    ]
    if not rows:
        return ""
    heads = ("field", "type", "default", "")
    kept = [i for i in range(len(heads)) if i < 2 or any(row[i] for row in rows)]
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(line[i] for i in kept)} |\n" for line in lines) + "\n"


def _laid_out(example: Mapping[str, Any]) -> str:
    """Return an example as JSON with one line per field."""
    lines = [f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in example.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def kind(schema: Schema) -> str:
    """Return a schema's type in words."""
    if name := COMPONENT.search(schema.get("$ref", "")):
        return f"[{name[1]}](#{name[1].lower()})"
    for choice in ("oneOf", "anyOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(kind(each) for each in schema[choice]))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(kind(each) for each in schema['prefixItems'])}]"
        items = kind(schema.get("items", {}))
        return f"list of {f'({items})' if ' or ' in items else items}{_bounds(schema)}"
    return f"{schema.get('type', 'anything')}{_bounds(schema)}"


def _bounds(schema: Schema) -> str:
    """Return the bounds of a number or a list in parentheses."""
    words = {
        "minimum": "≥ {}",
        "exclusiveMinimum": "> {}",
        "maximum": "≤ {}",
        "exclusiveMaximum": "< {}",
        "minItems": "at least {}",
        "maxItems": "at most {}",
    }
    said = [
        words[key].format(value)
        for key, value in schema.items()
        if key in words and abs(value) < EXACT
    ]
    return f" ({', '.join(said)})" if said else ""


def _prose(text: str) -> str:
    """Return a description as one line of Markdown, with `<` and `|` escaped outside code."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    for i in range(0, len(pieces), 2):
        pieces[i] = pieces[i].replace("<", "&lt;").replace("|", "&#124;")
    return "".join(pieces)
