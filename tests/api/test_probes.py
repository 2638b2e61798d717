"""Probes of an engine that has failed, in a process that goes on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from service.main import create_app
from service.settings import Settings
from tests.api.test_bodies import PATHS
from tests.api.wire import problem

SECONDS = 20.0


@pytest.mark.parametrize("path", ["/readyz", "/health", "/v1/model", PATHS["tokenize"]])
def test_failed_load_returns_self_check_failed_with_the_reason(tmp_path: Path, path: str) -> None:
    """A service that cannot load its model lives, and says that it will never be ready and
    why, neither that it is loading nor that it shuts down."""

    async def answers() -> tuple[httpx.Response, httpx.Response]:
        app = create_app(Settings(model=str(tmp_path / "none")))
        engine = app.state.deltaw.engine
        transport = httpx.ASGITransport(app)
        end = time.monotonic() + SECONDS
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            while not (engine.fatal and engine.draining) and time.monotonic() < end:
                await asyncio.sleep(0.01)
            method = "POST" if path in PATHS.values() else "GET"
            body = {"prompts": ["a"]} if method == "POST" else None
            return await client.request(method, path, json=body), await client.get("/livez")

    answer, live = asyncio.run(answers())
    said = problem(answer, "self_check_failed")
    assert "failed" in said.detail
    assert "none" in said.detail
    assert live.status_code == 200
