"""`/docs` in a real Chromium, below a path prefix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.proxy import proxied
from tests.service_process import Served, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
PREFIX = "/deltaw"


@pytest.fixture(scope="module")
def prefixed(tiny_folder: Path) -> Iterator[Served]:
    """A service with `root_path`."""
    with served(model=tiny_folder, root_path=PREFIX) as running:
        yield running


@pytest.mark.parametrize("strip", [True, False], ids=["stripped", "passed on"])
def test_docs_page_calls_the_service_below_the_prefix(
    browser: Browser, prefixed: Served, strip: bool
) -> None:
    """Swagger UI loads, shows the operations, and its "Execute" reaches the service."""
    from tests.web.browser import explorer

    with proxied(prefixed.url, PREFIX, strip=strip) as base, explorer(browser, base) as tab:
        tab.page.goto(f"{base}/docs")
        probe = tab.page.locator("#operations-operation-livez_livez_get")
        probe.locator("button.opblock-summary-control").click()
        probe.get_by_role("button", name="Try it out").click()
        probe.get_by_role("button", name="Execute").click()
        probe.locator(".live-responses-table", has_text='"status": "live"').wait_for()
        assert f"{base}/livez" in probe.locator(".request-url").inner_text()
        assert all(url.startswith((f"{base}/", "data:")) for url in tab.requests)
        assert tab.complaints == []


@pytest.mark.parametrize("strip", [True, False], ids=["stripped", "passed on"])
def test_explorer_page_fills_below_the_prefix(
    browser: Browser, prefixed: Served, strip: bool
) -> None:
    """The explorer page asks the service below the prefix alone, and every view fills."""
    from tests.web.browser import explorer

    with proxied(prefixed.url, PREFIX, strip=strip) as base, explorer(browser, base) as tab:
        tab.open(context="abc. the cd", query="ab")
        assert set(tab.states().values()) == {"done"}
        assert all(url.startswith((f"{base}/", "data:", "blob:")) for url in tab.requests)
        assert tab.complaints == []
