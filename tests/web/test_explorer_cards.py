"""The explorer's cards in a real Chromium: generated texts, and adapters to take away."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.service_process import Served, served
from tests.web.questions import LABELS, SENTENCES, answer, close

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

    from tests.web.browser import Explorer

pytestmark = pytest.mark.slow
EIGHT = {"max_tokens": 8, "temperature": 0, "logprobs": 0}
REFUSED = {"title": "Refused", "detail": "Too many.", "code": "never_fits", "status": 422}


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled GPT-2 with a store of adapters of its own."""
    folder = tmp_path_factory.mktemp("adapters")
    with served(model="bundled", threads=1, adapters=folder) as running:
        yield running


@pytest.fixture
def card(browser: Browser, keeping: Served) -> Iterator[Explorer]:
    """The page of a service without adapters. The tab must end without complaints."""
    from tests.web.browser import explorer

    with httpx.Client(base_url=keeping.url) as client:
        for entry in client.get("/v1/adapters").json()["adapters"]:
            client.delete(f"/v1/adapters/{entry['id']}").raise_for_status()
    with explorer(browser, keeping.url) as opened:
        yield opened
        assert opened.complaints == []


def fitted(card: Explorer, button: str = "Fit the adapter") -> str:
    """Press the card's button, wait for the answer, and return the card's text."""
    card.page.get_by_role("button", name=button).click()
    card.page.locator("#adapter:not([aria-busy])[data-state=done]").wait_for()
    return card.view("adapter").inner_text()


def figures(card: Explorer) -> dict[str, str]:
    """Return every number of the adapter shown, by its path in the answer."""
    return {row["figure"]: row["value"] for row in card.numbers("adapter")}


def test_generated_texts_are_the_services(tab: Explorer, api: httpx.Client) -> None:
    """The three rows are the three completions; the patched one is that with the context, the other
    differs from it where the page says."""
    tab.open(**SENTENCES)
    tokens = answer(api, "tokenize", **SENTENCES)
    ids = [token["id"] for part in ("context", "query") for token in tokens[part]["tokens"]]
    told = {
        "with_context": answer(api, "completions", prompt=ids, **EIGHT)["tokens"],
        "without_context": answer(api, "completions", prompt=SENTENCES["query"], **EIGHT)["tokens"],
    }
    told["patched"] = told["with_context"]
    rows = tab.numbers("generate")
    for run, expected in told.items():
        assert [int(row["id"]) for row in rows if row["run"] == run] == expected
    patched = [row for row in rows if row["run"] == "patched"]
    assert {row["same_token"] for row in patched} == {"true"}
    assert all(0 <= float(row["kl"]) < 1e-9 and int(row["rows_patched"]) > 0 for row in patched)
    pairs = zip(told["with_context"], told["without_context"], strict=True)
    parts = next(i for i, (one, other) in enumerate(pairs) if one != other)
    shown = tab.view("generate")
    assert f"differs from it at token {parts + 1}," in shown.locator(".caption").inner_text()
    assert shown.locator("path.parting").count() == 1
    assert shown.locator("rect.apart").count() == 8 - parts
    shown.locator("rect.zone").first.hover()
    assert patched[0]["margin"] in tab.page.locator("#tip").inner_text()


def test_choices_of_generation_are_in_the_link_and_the_commands(
    tab: Explorer, api: httpx.Client
) -> None:
    """Changed choices send the three completions alone again; the link and the curl commands have
    them, and the same seed gives the same text in the first two runs."""
    tab.open(**SENTENCES)
    sent = len(tab.requests)
    for label, value in (("Tokens", "5"), ("Temperature", "1.5"), ("Seed", "3")):
        tab.fill(label, value)
        tab.page.keyboard.press("Tab")
        tab.settled()
    tab.page.get_by_label("all rows", exact=True).check()
    tab.settled()
    assert "recompute=all&max_tokens=5&temperature=1.5&seed=3" in tab.page.url
    asked = {url.partition("/v1/")[2] for url in tab.requests[sent:] if "/v1/" in url}
    assert asked == {"completions"}
    assert "one set of weights acted" in tab.view("generate").locator(".caption").inner_text()
    tab.press("generate", "curl")
    commands = tab.view("generate").locator("pre").inner_text().split("\n\n")
    bodies = [json.loads(command.partition("-d '")[2].rstrip("'")) for command in commands]
    assert [body.get("patch", {}).get("recompute") for body in bodies] == [None, "all", None]
    texts = [answer(api, "completions", **body)["choices"][0]["text"] for body in bodies]
    assert texts[0] == texts[1] != texts[2]
    rows = tab.numbers("generate")
    assert "".join(row["text"] for row in rows if row["run"] == "patched") == texts[1]


def test_refused_generation_keeps_its_inputs(tab: Explorer) -> None:
    """A problem of the completions stands in their figure alone, and fewer tokens can be asked
    for there; a number outside the limits is not sent."""

    def refuse(route: Route) -> None:
        headers = {"Content-Type": "application/problem+json"}
        route.fulfill(status=422, headers=headers, body=json.dumps(REFUSED))

    tab.page.route("**/v1/completions", refuse)
    tab.open(**SENTENCES, max_tokens=64)
    assert tab.states()["generate"] == "failed"
    assert tab.states()["equivalence"] == "done"
    assert "Too many." in tab.view("generate").inner_text()
    tab.page.unroute_all()
    tab.fill("Tokens", "65")
    tab.page.keyboard.press("Tab")
    assert tab.states()["generate"] == "failed"
    tab.fill("Tokens", "2")
    tab.page.keyboard.press("Tab")
    tab.page.locator("#generate[data-state=done]").wait_for()
    assert len(tab.numbers("generate")) == 6


def test_static_adapter_is_the_services(card: Explorer) -> None:
    """Nothing is fitted before the card's own button is pressed; then the held-out figures stand
    beside their rivals, the list has the adapter, and its files are those of the service."""
    card.open(**LABELS)
    assert card.view("adapter").get_attribute("data-state") == "empty"
    assert card.page.locator(".stored").is_hidden()
    shown = fitted(card)
    with httpx.Client(base_url=card.url, timeout=60.0) as api:
        (entry,) = api.get("/v1/adapters").json()["adapters"]
        told: dict[str, Any] = api.get(f"/v1/adapters/{entry['id']}").json()
        rows = figures(card)
        for part in ("held_out", "rivals", "collateral"):
            for name, value in told[part].items():
                assert name == "teacher_forced" or close(rows[f"{part}.{name}"], value)
        assert "Exact" not in shown
        assert "of the context’s effect recovered on 8 held-out queries" in shown
        chart = card.view("adapter").locator("svg").text_content() or ""
        for name in ("constant answer", "mean output", "random update", "the context itself"):
            assert name in chart
        with card.page.expect_download() as download:
            card.page.get_by_role("link", name="adapter.zip").click()
        content = Path(download.value.path()).read_bytes()
        assert set(zipfile.ZipFile(io.BytesIO(content)).namelist()) >= {"adapter_config.json"}
        assert content == api.get(f"/v1/adapters/{entry['id']}/adapter.zip").content
    card.fill("Fit to, one per line", "cow:\npink:")
    assert "old" in (card.view("adapter").get_attribute("class") or "")
    card.fill("Held out, one per line", "mouse:")
    shown = fitted(card)
    assert "Not measured" in shown
    assert "fewer than eight are held out" in shown
    assert "constant answer" not in (card.view("adapter").locator("svg").text_content() or "")
    card.fill("Fit to, one per line", "")
    card.page.get_by_role("button", name="Fit the adapter").click()
    card.page.locator("#adapter[data-state=failed]").wait_for()
    assert "too_few_queries" in card.view("adapter").inner_text()


def test_token_adapter_is_listed_shown_and_deleted(card: Explorer) -> None:
    """A token adapter alone is called exact; the list shows it again, and deletes it when its
    button is pressed twice. Its file is fetched with the key if there is one."""
    card.open(**SENTENCES, kind="token", name="Germany")
    shown = fitted(card, "Make the adapter")
    assert "Exact" in shown
    assert figures(card)["exact"] == "true"
    card.page.reload()
    card.settled()
    card.page.locator(".stored summary").click()
    card.page.get_by_role("button", name="Show Germany").click()
    card.page.locator("#adapter:not([aria-busy])[data-state=done]").wait_for()
    assert "Exact" in card.view("adapter").inner_text()
    card.press("adapter", "curl")
    assert "-d" not in card.view("adapter").locator("pre").inner_text()
    card.page.evaluate("sessionStorage.setItem('deltaw-key', 'k')")
    with card.page.expect_download() as download:
        card.page.get_by_role("link", name="adapter_config.json").click()
    assert json.loads(Path(download.value.path()).read_text())["peft_type"] == "LORA"
    card.page.get_by_role("button", name="Delete Germany").click()
    card.page.get_by_role("button", name="Delete for good? Germany").click()
    card.page.locator("#adapter", has_text="Deleted Germany.").wait_for()
    assert card.page.locator(".stored").is_hidden()
    assert httpx.get(f"{card.url}/v1/adapters").json()["adapters"] == []


def test_example_fills_the_card_and_runs_the_page(card: Explorer) -> None:
    """The card's example fills the page's question and the card, and is fitted when asked."""
    card.open()
    card.page.get_by_role("button", name="Fill in an example").click()
    card.settled()
    assert set(card.states().values()) == {"done"}
    assert "queries=horse" in card.page.url
    fitted(card)
    rows = figures(card)
    assert float(rows["held_out.recovered"]) >= 0.95
    assert float(rows["held_out.beyond_constant"]) >= 0.6
