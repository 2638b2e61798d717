"""The explorer in a real Chromium while the service loads, has keys, or is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.api.wire import listening
from tests.service_process import served

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


def test_page_waits_for_the_model(browser: Browser, tiny_folder: Path) -> None:
    """Opened while the model is still being loaded, the page waits, and fills by itself."""
    from tests.web.browser import explorer

    with served(ready=False, model=tiny_folder) as running:
        listening(running)
        with explorer(browser, running.url) as tab:
            tab.open(context="abc. the cd", query="ab")
            assert set(tab.states().values()) == {"done"}


def test_key_is_asked_for(browser: Browser, tiny_folder: Path) -> None:
    """A service with keys gets one from the user; only the tab keeps it, and nothing shows it."""
    from tests.web.browser import Explorer, explorer

    key = "open-sesame"
    with served(model=tiny_folder, api_keys=key) as running, explorer(browser, running.url) as tab:
        tab.open(context="abc. the cd", query="ab")
        assert "Missing key" in tab.page.get_by_role("alert").inner_text()
        tab.page.get_by_role("button", name="Enter a key").click()
        tab.page.get_by_label("Key", exact=True).fill("wrong")
        tab.page.get_by_role("button", name="Use this key").click()
        tab.page.get_by_role("alert").get_by_text("Wrong key").wait_for()
        tab.page.get_by_role("button", name="API key").click()
        tab.page.get_by_label("Key", exact=True).fill(key)
        tab.page.get_by_role("button", name="Use this key").click()
        tab.page.locator("#equivalence[data-state=done]").wait_for()
        tab.settled()
        assert set(tab.states().values()) == {"done"}
        tab.press("updates", "curl")
        command = tab.view("updates").locator("pre").inner_text()
        assert 'Authorization: Bearer $DELTAW_API_KEY"' in command
        assert key not in tab.page.content() + tab.page.url
        assert key not in tab.page.evaluate("JSON.stringify(localStorage) + document.cookie")
        tab.page.reload()
        tab.settled()
        assert set(tab.states().values()) == {"done"}
        other = Explorer(tab.page.context.new_page(), running.url)
        other.open(context="abc. the cd", query="ab")
        assert "Missing key" in other.page.get_by_role("alert").inner_text()


def test_unreachable_service_is_said(browser: Browser, tiny_folder: Path) -> None:
    """The page says that the service is gone instead of showing the earlier results."""
    from tests.web.browser import explorer

    with served(model=tiny_folder) as running, explorer(browser, running.url) as tab:
        tab.open(context="abc. the cd", query="ab")
        running.process.kill()
        running.process.wait()
        tab.run()
        assert "cannot be reached" in tab.page.get_by_role("alert").inner_text()
        assert set(tab.states().values()) == {"failed"}
