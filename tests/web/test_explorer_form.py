"""The explorer's form in a real Chromium: inputs, links, keys, problems, stale results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from schemas.pairs import SEED_QUERY
from tests.web.questions import SENTENCES

if TYPE_CHECKING:
    from playwright.sync_api import Route

    from tests.web.browser import Explorer

pytestmark = pytest.mark.slow


def test_chosen_position_is_shown_in_every_view(tab: Explorer) -> None:
    """Choosing a query token shows every view at its position, and writes it into the address."""
    tab.open(**SENTENCES)
    tab.view("tokens").get_by_role("button", name="Germany").click()
    tab.settled()
    assert {row["position"] for row in tab.numbers("equivalence")} == {"3"}
    assert {row["position"] for row in tab.numbers("trajectory")} == {"3"}
    assert "“ Germany”" in tab.view("next-tokens").inner_text()
    assert "position=3" in tab.page.url


def test_pointer_and_keys_show_exact_numbers(tab: Explorer) -> None:
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


def test_link_reproduces_the_state(tab: Explorer) -> None:
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


def test_same_context_as_baseline_is_vacuous(tab: Explorer) -> None:
    """Another context as baseline; where it is the same, the check is vacuous and ΔW is noise."""
    tab.open(**SENTENCES)
    tab.page.get_by_label("other", exact=True).check()
    tab.fill("Compared with", SENTENCES["context"])
    tab.run()
    assert tab.view("equivalence").get_by_role("heading").inner_text().startswith("Vacuous")
    assert "noise" in (tab.view("updates").locator("svg").text_content() or "")
    assert {row["below_noise"] for row in tab.numbers("updates")} == {"true"}


def test_problem_is_shown(tab: Explorer) -> None:
    """A refused question shows the problem's title and detail once, and no results of another."""
    tab.open()
    tab.fill("Context", "")
    tab.run()
    alert = tab.page.get_by_role("alert")
    assert "Empty context" in alert.inner_text()
    assert "The context has no tokens." in alert.inner_text()
    assert "/context" in alert.inner_text()
    assert tab.states()["equivalence"] == "failed"
    assert tab.view("equivalence").is_hidden()
    assert tab.page.locator("svg circle.dot").count() == 0
    tab.page.go_back()
    tab.settled()
    assert set(tab.states().values()) == {"done"}
    assert alert.is_hidden()


def test_changed_inputs_mark_the_results_stale(tab: Explorer) -> None:
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


def test_newer_question_aborts_the_older(tab: Explorer) -> None:
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
    tab.page.locator("#said", has_text="6 of 7 answers …").wait_for()
    assert tab.states()["attribution"] == "busy"
    assert "computing" in tab.view("attribution").locator("header").inner_text()
    tab.fill("Query", " Rome")
    with tab.page.expect_event("requestfailed") as dropped:
        tab.run()
    assert dropped.value.url == f"{tab.url}/v1/attributions"
    assert json.loads(dropped.value.post_data or "")["query"] == " Paris"
    assert tab.view("attribution").locator(".reading .query").inner_text() == " Rome"


def test_link_is_copied(tab: Explorer) -> None:
    """The button copies the address that reproduces what is asked."""
    tab.open(**SENTENCES)
    tab.page.get_by_role("button", name="Copy link").click()
    tab.page.locator("#said", has_text="copied").wait_for()
    assert tab.page.evaluate("navigator.clipboard.readText()") == tab.page.url


def test_each_example_runs_and_holds(tab: Explorer) -> None:
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


def test_control_and_enter_run(tab: Explorer) -> None:
    """Control and Enter in the context runs; the skip link leads to the results."""
    tab.open()
    tab.fill("Context", "one two three four one two three")
    tab.page.keyboard.press("Control+Enter")
    tab.settled()
    assert "one+two" in tab.page.url
    tab.page.locator("#skip").focus()
    tab.page.keyboard.press("Enter")
    assert tab.page.evaluate("document.activeElement.id") == "results"


def test_chosen_theme_outlives_the_page(tab: Explorer) -> None:
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
