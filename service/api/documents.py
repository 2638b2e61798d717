"""The API's documentation: each problem by its code, and the OpenAPI pages without a CDN."""

from __future__ import annotations

from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from schemas.common import Answer
from schemas.problems import PROBLEMS
from service.api.operations import answers
from service.api.problems import ProblemError

router = APIRouter()
ASSETS = "/docs/assets"


class ProblemMeaning(Answer):
    """What a problem's code stands for."""

    code: str
    status: int
    title: str
    meaning: str
    retryable: bool


@router.get(
    "/problems/{code}",
    responses=answers(ProblemMeaning, tensors=False, problems=("not_found",)),
)
async def problem(code: str) -> ProblemMeaning:
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
    """Swagger's page on the OpenAPI document, all of it from here."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="deltaw",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
    )


def serve_assets(app: FastAPI) -> None:
    """Serve the page's scripts and styles, which the package fastapi-offline brings along."""
    folder = Path(fastapi_offline.__path__[0]) / "static"
    app.mount(ASSETS, StaticFiles(directory=folder), name="docs-assets")
