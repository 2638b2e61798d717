"""`python -m docs.openapi` writes docs/openapi.json, the OpenAPI document of the service."""

from __future__ import annotations

import json
from pathlib import Path

from service.main import create_app
from service.settings import Settings

FILE = Path(__file__).parent / "openapi.json"


def text() -> str:
    """Return the document as JSON, indented by two spaces, without escapes."""
    document = create_app(Settings()).openapi()
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
