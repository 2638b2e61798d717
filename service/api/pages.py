"""Pages and their files: the explorer, each problem by its code, and Swagger UI without a CDN."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi import Path as PathParameter
from fastapi.openapi.docs import swagger_ui_default_parameters
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from schemas.common import Answer
from schemas.problems import PROBLEMS
from service.api.openapi import answers
from service.api.refusals import ProblemError

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
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
"""Media type by suffix, since the table of `mimetypes` differs from system to system."""


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
    return ProblemMeaning(code, kind.status, kind.title, kind.meaning, kind.retryable)


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Serve Swagger UI for the OpenAPI document."""
    return HTMLResponse(PAGE)


@router.get("/docs/start.js", include_in_schema=False)
async def start() -> Response:
    """Serve the script that starts Swagger UI. The page's policy allows no inline script."""
    return Response(START, media_type="text/javascript")


class Files(StaticFiles):
    """Static files that ignore `Range`, since Starlette answers a bad one in plain text.

    Browsers revalidate them by ETag each time, so that an upgrade shows at once.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the whole file."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        headers = [field for field in scope["headers"] if field[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)

    def file_response(
        self,
        full_path: os.PathLike[str] | str,
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Answer with the file, or with 304 where the browser has it."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        if media_type := MEDIA_TYPES.get(Path(full_path).suffix):
            response.headers["Content-Type"] = media_type
        return response


explorer = Files(directory=Path(__file__).parent.parent / "web")


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """Serve the explorer page, which names its parts relatively, like the page of the docs."""
    return await explorer.get_response("index.html", request.scope)


def serve_files(app: FastAPI) -> None:
    """Serve the explorer's parts, and Swagger UI's, which the package fastapi-offline contains."""
    app.mount("/web", explorer)
    app.mount(f"/{ASSETS}", Files(directory=Path(fastapi_offline.__path__[0]) / "static"))
