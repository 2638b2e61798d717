"""The explorer: one page at `/` and its parts, all of them files of the package."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.types import Scope

from service.api.docs_pages import Whole

FOLDER = Path(__file__).parent.parent / "web"
PARTS = "/web"
"""Path of the page's parts. The page names them relatively, so that it works below any prefix."""
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
"""Media type by suffix, since the table of `mimetypes` differs from system to system."""


class Parts(Whole):
    """Static files that browsers revalidate by ETag each time, so that an upgrade shows at once."""

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


router = APIRouter()
parts = Parts(directory=FOLDER)


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """Serve the explorer page."""
    return await parts.get_response("index.html", request.scope)


def serve_parts(app: FastAPI) -> None:
    """Serve the page's scripts, styles, fonts and libraries."""
    app.mount(PARTS, parts, name="page-parts")
