"""Fixtures of the browser tests, which are skipped if there is no browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.service_process import Served, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.web.browser import Explorer


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real Chromium, one per module, because Playwright occupies the thread's event loop."""
    pytest.importorskip("playwright", reason="needs Playwright, see requirements-dev.lock")
    from tests.web.browser import chromium, launched

    executable = chromium()
    if executable is None:
        pytest.skip("needs a Chromium: install Debian's `chromium`, or set DELTAW_CHROMIUM")
    with launched(executable) as running:
        yield running


@pytest.fixture(scope="package")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled GPT-2 on one thread, behind real HTTP, with a store of adapters of its own."""
    adapters = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with served(model="bundled", threads=1, adapters=adapters) as running:
            yield running


@pytest.fixture
def api(explored: Served) -> Iterator[httpx.Client]:
    """A client of the service that serves the page."""
    with httpx.Client(base_url=explored.url, timeout=60.0) as client:
        yield client


@pytest.fixture
def tab(browser: Browser, explored: Served) -> Iterator[Explorer]:
    """The page at desktop width in the light theme. The tab must end without complaints."""
    from tests.web.browser import explorer

    with explorer(browser, explored.url) as opened:
        yield opened
        assert opened.complaints == []
