"""The explorer in a real Chromium, on the bundled model: views, links, the error path, files."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
import struct
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import httpx
import pytest

from schemas.pairs import SEED_CONTEXT, SEED_QUERY
from tests.api.wire import listening
from tests.service_process import Served, served

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Route

    from tests.web.browser import Explorer

pytestmark = pytest.mark.slow
VIEWS = ("equivalence", "next-tokens", "tokens", "updates", "trajectory", "attribution")
CHARTS = tuple(view for view in VIEWS if view != "tokens")
SENTENCES = {
    "context": "The capital of Malaysia is Kuala Lumpur. The capital of USA is Washington D.C.",
    "query": " The capital of Germany is",
}
SEED = {"context": SEED_CONTEXT, "query": SEED_QUERY}


def answer(api: httpx.Client, path: str, **body: Any) -> Any:
    """What the API says to the same question."""
    response = api.post(f"/v1/{path}", json=body)
    assert response.is_success, response.text
    return response.json()


def close(shown: str, told: float) -> bool:
    """Whether the page's number is the API's, but for what two runs round differently."""
    return abs(float(shown) - told) <= 1e-3 * abs(told) + 1e-9


def test_first_look(tab: Explorer) -> None:
    """The page asks the seed's question by itself, and every view fills."""
    tab.open()
    assert tab.page.get_by_label("Context").input_value() == SEED_CONTEXT
    assert tab.page.get_by_label("Query").input_value() == SEED_QUERY
    assert set(tab.states().values()) == {"done"}
    verdict = tab.view("equivalence").get_by_role("heading").inner_text()
    assert re.search(r"Holds\s+error .* 10−\d+, .* times below the unpatched", verdict)
    assert tab.page.title().startswith("deltaw")
    assert "bundled" in tab.page.locator("#resident").inner_text()


def test_everything_comes_from_the_service(tab: Explorer) -> None:
    """Whatever is done, no other host is asked, and nothing breaks the page's policy."""
    tab.open()
    for view in VIEWS:
        for action in ("Numbers", "curl"):
            tab.press(view, action)
    for view in CHARTS:
        tab.saved(view, "PNG")
    tab.view("trajectory").get_by_text("each sentence").click()
    tab.settled()
    assert len(tab.requests) > 30
    own = (f"{tab.url}/", "blob:", "data:")
    assert [url for url in tab.requests if not url.startswith(own)] == []


def test_verdict_is_the_services(tab: Explorer, api: httpx.Client) -> None:
    """Each layer has the patched error, the tolerance, the unpatched error and each control."""
    tab.open()
    told = answer(api, "equivalence-checks", **SEED)
    rows = tab.numbers("equivalence")
    assert len(rows) == len(told["checks"])
    for row, check in zip(rows, told["checks"], strict=True):
        assert row["verdict"] == check["verdict"]
        assert close(row["tolerance"], check["tolerance"])
        assert close(row["unpatched_relative_error"], check["unpatched_relative_error"])
        assert float(row["relative_error"]) < check["tolerance"]
        for name in ("without_bias", "without_weight", "random_update", "shuffled_context"):
            assert close(row[name], check["controls"][name])
    chart = tab.view("equivalence").locator("svg")
    # beside a row for each layer, the legend has one glyph of each kind
    assert chart.locator("circle.dot").count() == len(rows) + 1
    assert chart.locator("circle.unpatched").count() == len(rows) + 1
    assert chart.locator("path.tolerance").count() == len(rows) + 1
    assert chart.locator("path.control").count() == 5 * (len(rows) + 1)


def test_errors_lie_on_a_logarithmic_axis(tab: Explorer) -> None:
    """A decade has one width, and the marks lie where their numbers say."""
    tab.open()
    row = tab.numbers("equivalence")[0]
    chart = tab.view("equivalence").locator("svg")

    def place(selector: str) -> float:
        marked = chart.locator(selector).locator("xpath=self::*[@data-mark]").first
        found = re.search(r"translate\(([\d.]+)", marked.get_attribute("transform") or "")
        assert found is not None
        return float(found[1])

    names = {
        "circle.dot": "relative_error",
        "path.tolerance": "tolerance",
        "circle.unpatched": "unpatched_relative_error",
    }
    at = {s: (math.log10(float(row[name])), place(s)) for s, name in names.items()}
    (low, x_low), (middle, x_middle), (high, x_high) = at.values()
    assert (x_middle - x_low) / (middle - low) == pytest.approx(
        (x_high - x_middle) / (high - middle)
    )


def test_next_tokens_are_the_services(tab: Explorer, api: httpx.Client) -> None:
    """With context, patched, and without context: the likeliest tokens of scope `model`."""
    tab.open(**SENTENCES)
    told = answer(api, "equivalence-checks", **SENTENCES, scope="model", stream="sequential")
    rows = tab.numbers("next-tokens")
    for run, tokens in told["logits"][0]["top_tokens"].items():
        shown = [row for row in rows if row["run"] == run]
        assert [row["text"] for row in shown][:3] == [token["text"] for token in tokens][:3]
        assert close(shown[0]["probability"], tokens[0]["probability"])


def test_updates_are_the_services(tab: Explorer, api: httpx.Client) -> None:
    """The heat map has a cell for each layer and query token; cosine and Δh stand beside it."""
    tab.open(**SENTENCES)
    told = answer(api, "weight-updates", **SENTENCES, positions="all", include=[])["updates"]
    rows = tab.numbers("updates")
    assert len(rows) == len(told)
    for row, update in zip(rows, told, strict=True):
        assert (row["layer"], row["position"]) == (str(update["layer"]), str(update["position"]))
        assert close(row["relative_norm"], update["relative_norm"])
        assert close(row["mlp_in_cosine"], update["mlp_in"]["cosine"])
        assert close(row["resid_mid_norm_difference"], update["resid_mid"]["norm_difference"])
    cells = tab.view("updates").locator("svg g.picks rect[data-mark]")
    assert cells.count() == len(told)
    colours = [cell.get_attribute("fill") for cell in cells.all()]
    strongest = max(range(len(told)), key=lambda i: told[i]["relative_norm"])
    assert colours[strongest] == min(colours, key=lambda colour: int(str(colour)[1:3], 16))


def test_position_is_chosen(tab: Explorer) -> None:
    """Choosing a query token shows every view at its position, and writes it into the address."""
    tab.open(**SENTENCES)
    tab.view("tokens").get_by_role("button", name="Germany").click()
    tab.settled()
    assert {row["position"] for row in tab.numbers("equivalence")} == {"3"}
    assert {row["position"] for row in tab.numbers("trajectory")} == {"3"}
    assert "“ Germany”" in tab.view("next-tokens").inner_text()
    assert "position=3" in tab.page.url


def test_trajectory_is_the_services(tab: Explorer, api: httpx.Client) -> None:
    """A line for each layer, a step for each token or each sentence, as the API has them."""
    tab.open(**SENTENCES)
    told = answer(api, "trajectories", **SENTENCES)
    steps = [step for layer in told["layers"] for step in layer["steps"]]
    rows = tab.numbers("trajectory")
    assert len(rows) == len(steps)
    assert all(close(row["norm"], step["norm"]) for row, step in zip(rows, steps, strict=True))
    chart = tab.view("trajectory").locator("svg")
    assert chart.locator("path.line").count() == len(told["layers"])
    tab.view("trajectory").get_by_text("each sentence").click()
    tab.settled()
    spans = answer(api, "attributions", **SENTENCES, layers=[0])["layers"][0]["spans"]
    rows = tab.numbers("trajectory")
    assert len(rows) == len(told["layers"]) * len(spans)
    assert [int(row["to"]) for row in rows[: len(spans)]] == [part["span"][1] for part in spans]
    assert "steps=sentences" in tab.page.url


def test_attribution_is_the_services(tab: Explorer, api: httpx.Client) -> None:
    """The context's text is coloured span by span with the chosen layer's shares."""
    tab.open(**SENTENCES)
    told = answer(api, "attributions", **SENTENCES)["layers"]
    rows = tab.numbers("attribution")
    shares = [part["share"] for layer in told for part in layer["spans"]]
    assert len(rows) == len(shares)
    assert all(close(row["share"], share) for row, share in zip(rows, shares, strict=True))
    pieces = tab.view("attribution").locator(".reading .piece")
    said = [piece.evaluate("e => e.firstChild.data") for piece in pieces.all()]
    assert "".join(said) == SENTENCES["context"]
    last = [piece.evaluate("e => e.style.backgroundColor") for piece in pieces.all()]
    tab.page.get_by_label("Text coloured for layer").select_option("0")
    assert "layer=0" in tab.page.url
    first = [piece.evaluate("e => e.style.backgroundColor") for piece in pieces.all()]
    assert first != last


def test_pointer_and_keys_tell_exactly(tab: Explorer) -> None:
    """Under the pointer, and under the arrow keys, each mark tells every digit of its number."""
    tab.open()
    row = tab.numbers("equivalence")[1]
    chart = tab.view("equivalence").locator("svg")
    chart.locator("circle.dot[data-mark]").nth(1).hover()
    assert row["relative_error"] in tab.page.locator("#tip").inner_text()
    chart.focus()
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("ArrowDown")
    spoken = tab.page.locator("#spoken").inner_text()
    assert spoken.startswith("layer 1: holds: patched")
    assert row["relative_error"] in spoken
    tab.page.keyboard.press("Escape")
    assert tab.page.locator("#tip").is_hidden()


def test_link_reproduces(tab: Explorer) -> None:
    """A state in the fragment fills the form and the views; what is run is written back."""
    state = {**SENTENCES, "baseline": "alone", "stream": "sequential", "precision": "float64"}
    tab.open(**state, position="1", layer="2", steps="sentences")
    assert tab.page.get_by_label("Query", exact=True).input_value() == state["query"]
    for choice in ("alone", "sequential", "float64"):
        assert tab.page.get_by_label(choice, exact=True).is_checked()
    caption = tab.view("equivalence").locator(".caption").inner_text()
    assert "baseline alone, stream sequential, float64, position shift" in caption
    assert "This view exists with baseline matched" in tab.view("trajectory").inner_text()
    address, rows = tab.page.url, tab.numbers("updates")
    tab.page.goto("about:blank")
    tab.page.goto(address)
    tab.settled()
    assert tab.page.url == address
    assert [row["layer"] for row in tab.numbers("updates")] == [row["layer"] for row in rows]


def test_another_context(tab: Explorer) -> None:
    """Another context as baseline; where it is the same, the check is vacuous and ΔW is noise."""
    tab.open(**SENTENCES)
    tab.page.get_by_label("other", exact=True).check()
    tab.fill("Compared with", SENTENCES["context"])
    tab.run()
    assert tab.view("equivalence").get_by_role("heading").inner_text().startswith("Vacuous")
    assert "noise" in (tab.view("updates").locator("svg").text_content() or "")
    assert {row["below_noise"] for row in tab.numbers("updates")} == {"true"}


def test_nulls_are_shown(tab: Explorer) -> None:
    """A control that cannot be formed is said with its reason, and is no 0 in the numbers."""
    tab.open(context="The", query=" capital")
    assert "Not formed at any layer" in tab.view("equivalence").inner_text()
    assert {row["shuffled_context"] for row in tab.numbers("equivalence")} == {"null"}
    table = list(csv.DictReader(io.StringIO(tab.saved("equivalence", "CSV").decode())))
    assert {row["shuffled_context"] for row in table} == {""}


def test_problem_is_shown(tab: Explorer) -> None:
    """A refused question shows the problem's title and detail once, and no results of another."""
    tab.open()
    tab.fill("Context", "")
    tab.run()
    alert = tab.page.get_by_role("alert")
    assert "Empty context" in alert.inner_text()
    assert "the context has no tokens" in alert.inner_text()
    assert "/context" in alert.inner_text()
    assert tab.states()["equivalence"] == "failed"
    assert tab.view("equivalence").is_hidden()
    assert tab.page.locator("svg circle.dot").count() == 0
    tab.page.go_back()
    tab.settled()
    assert set(tab.states().values()) == {"done"}
    assert alert.is_hidden()


def test_changed_inputs_are_said(tab: Explorer) -> None:
    """Once the inputs differ from those that were run, the results are marked until run again."""
    tab.open()
    banner = tab.page.locator("#stale")
    assert banner.is_hidden()
    tab.fill("Query", " Paris")
    assert banner.is_visible()
    assert "stale-results" in (tab.page.locator("#results").get_attribute("class") or "")
    tab.fill("Query", SEED_QUERY)
    assert banner.is_hidden()
    tab.page.get_by_label("anchored", exact=True).check()
    assert banner.is_visible()
    banner.get_by_role("button", name="Run again").click()
    tab.settled()
    assert banner.is_hidden()
    assert "baseline anchored" in tab.view("updates").locator(".caption").inner_text()


def test_newer_question_drops_the_older(tab: Explorer) -> None:
    """While one question's answers are held up, a newer one aborts it and is shown."""

    def hold(route: Route) -> None:
        if json.loads(route.request.post_data or "")["query"] != " Paris":
            route.continue_()  # and let the other wait for ever

    tab.open()
    tab.page.route("**/v1/attributions", hold)
    tab.fill("Query", " Paris")
    tab.page.get_by_role("button", name="Run", exact=True).click()
    tab.page.locator("#attribution[aria-busy=true]").wait_for()
    assert tab.page.get_by_role("button", name="Cancel").is_visible()
    tab.page.locator("#said", has_text="5 of 6 answers …").wait_for()
    assert tab.states()["attribution"] == "busy"
    assert "computing" in tab.view("attribution").locator("header").inner_text()
    tab.fill("Query", " Rome")
    with tab.page.expect_event("requestfailed") as dropped:
        tab.run()
    assert dropped.value.url == f"{tab.url}/v1/attributions"
    assert json.loads(dropped.value.post_data or "")["query"] == " Paris"
    assert tab.view("attribution").locator(".reading .query").inner_text() == " Rome"


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


@pytest.mark.parametrize("view", VIEWS)
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


def test_link_is_copied(tab: Explorer) -> None:
    """The button copies the address that reproduces what is asked."""
    tab.open(**SENTENCES)
    tab.page.get_by_role("button", name="Copy link").click()
    tab.page.locator("#said", has_text="copied").wait_for()
    assert tab.page.evaluate("navigator.clipboard.readText()") == tab.page.url


def test_examples_run(tab: Explorer) -> None:
    """Each example fills the form, is run at once, and holds on the bundled model."""
    tab.open()
    buttons = tab.page.locator("#examples button")
    assert buttons.count() >= 5
    for i in range(buttons.count()):
        buttons.nth(i).click()
        tab.settled()
        assert set(tab.states().values()) == {"done"}
        assert buttons.nth(i).get_attribute("aria-pressed") == "true"
        assert tab.view("equivalence").get_by_role("heading").inner_text().startswith("Holds")


def test_keyboard_runs(tab: Explorer) -> None:
    """Control and Enter in the context runs; the skip link leads to the results."""
    tab.open()
    tab.fill("Context", "one two three four one two three")
    tab.page.keyboard.press("Control+Enter")
    tab.settled()
    assert "one+two" in tab.page.url
    tab.page.locator("#skip").focus()
    tab.page.keyboard.press("Enter")
    assert tab.page.evaluate("document.activeElement.id") == "results"


def test_theme_is_chosen(tab: Explorer) -> None:
    """The theme follows the system until one is chosen; the choice outlives the page."""
    tab.open()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.page.evaluate(ground)
    button = tab.page.get_by_role("button", name="Theme")
    button.click()
    button.click()
    assert button.inner_text() == "Theme: dark"
    assert tab.page.evaluate(ground) != light
    tab.page.reload()
    tab.settled()
    assert tab.page.evaluate(ground) != light


def test_waits_for_the_model(browser: Browser, tiny_folder: Path) -> None:
    """Opened while the model is still being loaded, the page waits, and fills by itself."""
    from tests.web.browser import explorer

    with served(ready=False, model=tiny_folder) as running:
        listening(running)
        with explorer(browser, running.url) as tab:
            tab.open(context="abc. the cd", query="ab")
            assert set(tab.states().values()) == {"done"}


def test_key_is_asked_for(browser: Browser, tiny_folder: Path) -> None:
    """Where the service has keys, one is entered, kept by the tab alone, and shown nowhere."""
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
    """Where the service is gone, the page says so instead of showing the earlier results."""
    from tests.web.browser import explorer

    with served(model=tiny_folder) as running, explorer(browser, running.url) as tab:
        tab.open(context="abc. the cd", query="ab")
        running.process.kill()
        running.process.wait()
        tab.run()
        assert "cannot be reached" in tab.page.get_by_role("alert").inner_text()
        assert set(tab.states().values()) == {"failed"}


def test_explored_is_bundled(api: httpx.Client, explored: Served) -> None:
    """These tests look at the model that ships with the package."""
    assert api.get("/v1/model").json()["model"]["id"] == "bundled"
    assert explored.process.poll() is None
