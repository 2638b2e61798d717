"""The explorer's files in a real Chromium: SVG, PNG, CSV, and curl commands."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import struct
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import httpx
import pytest

from tests.web.questions import CHARTS, SENTENCES, VIEWS

if TYPE_CHECKING:
    from tests.web.browser import Explorer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("view", CHARTS)
def test_charts_are_files(tab: Explorer, view: str) -> None:
    """A chart is exported as an SVG that needs nothing else, and as a PNG of twice the pixels."""
    tab.open(**SENTENCES)
    drawing = tab.saved(view, "SVG").decode()
    root = ElementTree.fromstring(drawing)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in drawing
    assert set(re.findall(r"https?://[^\"\s)]+", drawing)) == {"http://www.w3.org/2000/svg"}
    assert "class=" not in drawing
    picture = tab.saved(view, "PNG")
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", picture[16:24])
    assert width == round(2 * float(root.attrib["width"]))
    assert height == round(2 * float(root.attrib["height"]))
    assert len(picture) > 5000


def test_data_is_a_file(tab: Explorer) -> None:
    """The CSV has the very numbers that the table shows, and texts as they are."""
    tab.open(**SENTENCES)
    for view in VIEWS:
        table = list(csv.DictReader(io.StringIO(tab.saved(view, "CSV").decode(), newline="")))
        shown = tab.numbers(view)
        assert [list(row.values()) for row in table] == [
            ["" if value == "null" else value for value in row.values()] for row in shown
        ]


@pytest.mark.parametrize("view", [view for view in VIEWS if view != "generate"])
def test_curl_asks_the_same(tab: Explorer, api: httpx.Client, view: str) -> None:
    """Each view's curl command, pasted, asks the service what the view shows."""
    state = {"context": 'He said "it\'s" so. She\nagreed.', "query": " it's"}
    tab.open(**state)
    tab.press(view, "curl")
    words = shlex.split(tab.view(view).locator("pre").inner_text().replace("\\\n", " "))
    assert words[:2] == ["curl", "-s"]
    body = json.loads(words[words.index("-d") + 1])
    assert (body["context"], body["query"]) == (state["context"], state["query"])
    response = api.post(words[2], json=body, headers={"Content-Type": "application/json"})
    assert response.is_success, response.text
    assert words[2].startswith(f"{tab.url}/v1/")
    tab.view(view).get_by_role("button", name="Copy").click()
    copied = tab.page.evaluate("navigator.clipboard.readText()")
    assert shlex.split(copied.replace("\\\n", " ")) == words
