"""axe finds no serious violation on the explorer, and the page fits every width."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.service_process import Served
from tests.web.questions import VIEWS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.web.browser import Explorer

pytestmark = pytest.mark.slow
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
LONG = {
    "context": " ".join(f"The capital of country {i} is city {i}." for i in range(5)),
    "query": " The capital of Germany is Berlin; what then?",
}


def violations(tab: Explorer) -> list[tuple[str, list[str]]]:
    """Return the serious and critical violations that axe finds, with their elements."""
    tab.page.evaluate(AXE.read_text())
    found: dict[str, Any] = tab.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(found["passes"]) > 20
    return [
        (rule["id"], [node["html"] for node in rule["nodes"]])
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", ["phone", "tablet", "desktop"])
def test_axe_finds_no_serious_violation(
    browser: Browser, explored: Served, size: str, theme: str
) -> None:
    """With results, an adapter and every drawer open, with stale ones, a problem, the dialog."""
    from tests.web.browser import explorer

    with explorer(browser, explored.url, size, theme) as tab:
        tab.open(**LONG)
        assert violations(tab) == []
        tab.page.get_by_label("exact for one").check()
        tab.page.get_by_role("button", name="Make the adapter").click()
        tab.page.locator("#adapter[data-state=done]").wait_for()
        tab.page.locator(".stored summary").click()
        for view in (*VIEWS, "adapter"):
            for action in ("Numbers", "curl"):
                tab.press(view, action)
        tab.fill("Query", " Paris")
        assert violations(tab) == []
        tab.fill("Context", "")
        tab.run()
        assert violations(tab) == []
        tab.page.get_by_role("button", name="API key").click()
        assert violations(tab) == []


@pytest.mark.parametrize("size", ["phone", "tablet", "desktop"])
def test_page_never_scrolls_sideways(browser: Browser, explored: Served, size: str) -> None:
    """The page fits every width; only a chart with many tokens scrolls, inside its own box."""
    from tests.web.browser import explorer

    with explorer(browser, explored.url, size) as tab:
        for state in ({}, LONG):
            tab.open(**state)
            assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if size == "phone":
            plot = tab.view("trajectory").locator(".plot")
            assert plot.evaluate("e => e.scrollWidth > e.clientWidth")
            assert plot.get_attribute("tabindex") == "0"
