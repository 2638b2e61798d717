"""Drive a real Chromium on the explorer page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Browser, Locator, Page, sync_playwright

from tests.web.questions import VIEWS

SIZES = {"phone": (390, 844), "tablet": (820, 1180), "desktop": (1440, 900)}
SECONDS = 30.0


def chromium() -> str | None:
    """Return the path of Chromium: `DELTAW_CHROMIUM`, or the one on PATH; None if there is none."""
    return os.environ.get("DELTAW_CHROMIUM") or shutil.which("chromium")


@contextmanager
def launched(executable: str) -> Iterator[Browser]:
    """Start a Chromium with a new profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            headless=True,
            args=["--no-sandbox", "--disable-gpu"],
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Explorer:
    """The explorer in one tab, with the requests and errors of the tab.

    Args:
        page: Playwright's page.
        url: Address of the service.
        requests: Every requested URL.
        complaints: Script errors and console errors, such as violations of the content policy.
    """

    page: Page
    url: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, **state: Any) -> None:
        """Open the page with a state in its fragment and wait for all answers."""
        self.page.goto(f"{self.url}/#{urlencode(state)}" if state else f"{self.url}/")
        self.settled()

    def settled(self) -> None:
        """Wait until every answer or problem has arrived."""
        self.page.locator("#results[aria-busy=false]").wait_for(timeout=1000 * SECONDS)

    def run(self) -> None:
        """Press Run and wait for all answers."""
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.settled()

    def fill(self, label: str, text: str) -> None:
        """Type into the field with this label."""
        self.page.get_by_label(label, exact=True).fill(text)

    def view(self, name: str) -> Locator:
        """Return one figure."""
        return self.page.locator(f"#{name}")

    def states(self) -> dict[str, str | None]:
        """Return the state of each figure: `done`, `busy`, `failed` or `empty`."""
        return {name: self.view(name).get_attribute("data-state") for name in VIEWS}

    def press(self, view: str, action: str) -> None:
        """Press one of the buttons below a figure."""
        self.view(view).locator(".actions").get_by_text(action, exact=True).click()

    def saved(self, view: str, kind: str) -> bytes:
        """Return the file that a figure exports as `SVG`, `PNG` or `CSV`."""
        with self.page.expect_download() as download:
            self.press(view, kind)
        assert download.value.suggested_filename == f"deltaw-{view}.{kind.lower()}"
        return Path(download.value.path()).read_bytes()

    def numbers(self, view: str) -> list[dict[str, str]]:
        """Return the rows of a figure's table of numbers, by column name."""
        self.press(view, "Numbers")
        table = self.page.locator(f"#{view}-numbers table")
        names = table.locator("thead th").all_text_contents()
        rows = [row.locator("td").all_text_contents() for row in table.locator("tbody tr").all()]
        self.press(view, "Numbers")
        return [dict(zip(names, row, strict=True)) for row in rows]


@contextmanager
def explorer(
    browser: Browser, url: str, size: str = "desktop", theme: str = "light"
) -> Iterator[Explorer]:
    """Open a tab with its own profile.

    Args:
        browser: A running Chromium.
        url: Address of the service.
        size: One of `SIZES`.
        theme: `light` or `dark`, the colour scheme of the system.
    """
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if theme == "dark" else "light",
        reduced_motion="reduce",
        permissions=["clipboard-read", "clipboard-write"],
    )
    try:
        tab = Explorer(context.new_page(), url)
        tab.page.on("request", lambda request: tab.requests.append(request.url))
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.page.on(
            "console",
            lambda message: (
                tab.complaints.append(message.text)
                if message.type == "error" and "Failed to load resource" not in message.text
                else None
            ),
        )
        yield tab
    finally:
        context.close()
