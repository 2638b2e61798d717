"""API documentation: each problem by its code, and Swagger UI without a CDN."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import fastapi_offline
from fastapi import APIRouter, FastAPI, Response
from fastapi import Path as PathParameter
from fastapi.openapi.docs import swagger_ui_default_parameters
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from schemas.common import Answer
from schemas.problems import PROBLEMS
from service.api.openapi import answers
from service.api.problems import ProblemError

router = APIRouter()
ASSETS = "docs/assets"
"""Relative to `/docs`, like every reference of the page, so that it works below any prefix."""
PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1.0">
<link rel="stylesheet" href="{ASSETS}/swagger-ui.css">
<link rel="icon" href="{ASSETS}/favicon.png">
<title>deltaw</title>
</head>
<body>
<div id="swagger-ui"></div>
<script src="{ASSETS}/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = f"""SwaggerUIBundle({{
  ...{json.dumps(swagger_ui_default_parameters)},
  url: "openapi.json",
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
}});
"""


@dataclass(frozen=True)
class ProblemMeaning(Answer):
    """Meaning of a problem's code."""

    code: str
    status: int
    title: str
    meaning: str
    retryable: bool


@router.get(
    "/problems/{code}",
    responses=answers(ProblemMeaning, tensors=False, problems=("not_found",)),
)
async def problem(
    code: Annotated[str, PathParameter(json_schema_extra={"enum": [*PROBLEMS]})],
) -> ProblemMeaning:
    """Explain a problem's code."""
    if code not in PROBLEMS:
        raise ProblemError("not_found")
    kind = PROBLEMS[code]
    return ProblemMeaning(
        code=code,
        status=kind.status,
        title=kind.title,
        meaning=kind.meaning,
        retryable=kind.retryable,
    )


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Serve Swagger UI for the OpenAPI document."""
    return HTMLResponse(PAGE)


@router.get("/docs/start.js", include_in_schema=False)
async def start() -> Response:
    """Serve the script that starts Swagger UI. The page's policy allows no inline script."""
    return Response(START, media_type="text/javascript")


class Whole(StaticFiles):
    """Static files that ignore `Range`, since Starlette answers a bad one in plain text."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the whole file."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        headers = [field for field in scope["headers"] if field[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def serve_assets(app: FastAPI) -> None:
    """Serve the scripts and styles of Swagger UI, which the package fastapi-offline contains."""
    folder = Path(fastapi_offline.__path__[0]) / "static"
    app.mount(f"/{ASSETS}", Whole(directory=folder), name="docs-assets")
