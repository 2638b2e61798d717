"""The explorer in a real Chromium on questions that exceed a limit of one request."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.service_process import Served, served
from tests.web.questions import answer, close

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Request, Route

    from tests.web.browser import Explorer

pytestmark = pytest.mark.slow
ROWS = 260
"""Rows that one request may need: enough for an update, too few for all sentences of `LONG`."""
LONG = {
    "context": "The capital of the U.S.A. is Washington D.C. The capital of Italy is Rome!\n\n"
    "Is Paris a city?  It is 3.5 times as large.\nOslo. "
    "The capital of Peru is Lima. And a river runs through it. \n",
    "query": " The capital of Germany is Berlin; and",
}
QUEUE_FULL = {"title": "Busy", "detail": "The queue is full.", "code": "queue_full", "status": 429}


@pytest.fixture(scope="module")
def narrow() -> Iterator[Served]:
    """The bundled GPT-2 with a low limit on the rows of a request."""
    with served(model="bundled", threads=1, max_tokens_per_request=ROWS) as running:
        yield running


@pytest.fixture
def tight(browser: Browser, narrow: Served) -> Iterator[Explorer]:
    """The page of the narrow service. The tab must end without complaints."""
    from tests.web.browser import explorer

    with explorer(browser, narrow.url) as opened:
        yield opened
        assert opened.complaints == []


def commands(tab: Explorer, view: str) -> list[tuple[str, dict[str, Any]]]:
    """The address and the body of each curl command of a view."""
    tab.press(view, "curl")
    text = tab.view(view).locator("pre").inner_text().replace("\\\n", " ")
    words = [shlex.split(command) for command in text.split("\n\n")]
    return [(command[2], json.loads(command[command.index("-d") + 1])) for command in words]


@pytest.mark.parametrize("baseline", ["matched", "anchored"])
def test_sentences_that_do_not_fit_are_sent_in_parts(
    tight: Explorer, api: httpx.Client, baseline: str
) -> None:
    """The page sends the sentences in several requests and shows the shares of one request, without
    the order effect, and says so."""
    tight.open(**LONG, baseline=baseline)
    assert set(tight.states().values()) == {"done"}
    told = answer(api, "attributions", **LONG, baseline=baseline)["layers"]
    rows = tight.numbers("attribution")
    spans = [(layer["layer"], part) for layer in told for part in layer["spans"]]
    assert len(told[0]["spans"]) == 8
    assert len(rows) == len(spans)
    for row, (layer, part) in zip(rows, spans, strict=True):
        assert (int(row["layer"]), [int(row["from"]), int(row["to"])]) == (layer, part["span"])
        assert close(row["share"], part["share"])
        assert close(row["leave_one_out"], part["leave_one_out"])
    assert "order_effect" not in rows[0]
    shown = tight.view("attribution").inner_text()
    assert "order effect ‖ΔW" not in shown
    sent = commands(tight, "attribution")
    assert len(sent) > 1
    assert f"the page sent {len(sent)} requests" in shown
    assert "The order effect needs all sentences in one request, so it is left out." in shown
    assert [span for _, body in sent for span in body["spans"]] == [
        part["span"] for part in told[0]["spans"]
    ]
    for address, body in sent:
        assert httpx.post(address, json=body, timeout=60.0).is_success


def test_trajectory_that_does_not_fit_takes_larger_steps(
    tight: Explorer, api: httpx.Client
) -> None:
    """A trajectory with too many steps groups tokens, or sentences, into fewer steps, and says so.

    Its curl command asks for these steps.
    """
    tight.open(**LONG)
    ((_, body),) = commands(tight, "trajectory")
    told = answer(api, "trajectories", **body)["layers"]
    steps = [step for layer in told for step in layer["steps"]]
    rows = tight.numbers("trajectory")
    assert all(close(row["norm"], step["norm"]) for row, step in zip(rows, steps, strict=True))
    longest = max(end - start for start, end in body["spans"])
    assert longest > 1
    shown = tight.view("trajectory").locator(".caption").inner_text()
    assert f"read in {len(body['spans'])} steps of up to {longest} tokens." in shown
    tight.view("trajectory").get_by_text("each sentence").click()
    tight.settled()
    assert set(tight.states().values()) == {"done"}


def test_positions_that_do_not_fit_are_sent_in_parts(tight: Explorer, api: httpx.Client) -> None:
    """Updates of the sequential stream at too many positions are those of one request."""
    asked = {**LONG, "query": 2 * LONG["query"], "stream": "sequential"}
    tight.open(**asked)
    sent = commands(tight, "updates")
    assert len(sent) > 1
    assert f"the page sent {len(sent)} requests" in tight.view("updates").inner_text()
    told = answer(api, "weight-updates", **asked, positions="all", include=["next_tokens"])
    rows = tight.numbers("updates")
    for row, update in zip(rows, told["updates"], strict=True):
        assert (row["layer"], row["position"]) == (str(update["layer"]), str(update["position"]))
        assert close(row["norm"], update["norm"])


def test_queue_full_between_parts_is_waited_for(tight: Explorer) -> None:
    """A part that the service refuses because its queue is full is sent again after
    `Retry-After`, and no part is lost."""
    refused: list[Request] = []

    def refuse_once(route: Route) -> None:
        if "spans" in json.loads(route.request.post_data or "") and not refused:
            refused.append(route.request)
            headers = {"Content-Type": "application/problem+json", "Retry-After": "1"}
            route.fulfill(status=429, headers=headers, body=json.dumps(QUEUE_FULL))
        else:
            route.continue_()

    tight.page.route("**/v1/attributions", refuse_once)
    tight.open(**LONG)
    assert len(refused) == 1
    assert set(tight.states().values()) == {"done"}


def test_cancel_ends_the_parts(tight: Explorer) -> None:
    """While parts are being sent, the page shows how many are answered; Cancel sends no more."""
    answered: list[Route] = []
    held: list[Route] = []

    def hold(route: Route) -> None:
        if answered:
            held.append(route)  # and let it wait for ever
            return
        response = route.fetch()
        if response.ok:
            answered.append(route)
        route.fulfill(response=response)

    tight.open(context="a")
    tight.page.route("**/v1/attributions", hold)
    tight.fill("Context", LONG["context"])
    tight.fill("Query", LONG["query"])
    tight.page.get_by_role("button", name="Run", exact=True).click()
    header = tight.view("attribution").locator("header")
    header.get_by_text("computing … 1 of ").wait_for()
    tight.page.locator("#said", has_text="6 of 7 answers …").wait_for()
    tight.page.get_by_role("button", name="Cancel").click()
    tight.settled()
    assert len(held) == 1
    assert "computing" not in header.inner_text()
    tight.page.unroute_all()
    tight.run()
    assert set(tight.states().values()) == {"done"}


def test_check_that_does_not_fit_is_sent_without_controls(
    tight: Explorer, api: httpx.Client
) -> None:
    """A check whose controls exceed the limit is sent without them, says so, and holds."""
    tight.open(context="a b c d " * 50, query=" a")
    shown = tight.view("equivalence").inner_text()
    assert shown.startswith("Holds")
    assert "exceeds the limit of one request, so they are left out." in shown
    assert "ΔW without Δh" not in shown
    ((_, body),) = commands(tight, "equivalence")
    told = answer(api, "equivalence-checks", **body)["checks"]
    rows = tight.numbers("equivalence")
    for row, check in zip(rows, told, strict=True):
        assert close(row["unpatched_relative_error"], check["unpatched_relative_error"])
    assert "shuffled_context" not in rows[0]


def test_question_that_no_part_fits_gets_advice(tight: Explorer) -> None:
    """If even the smallest request exceeds the limit, the page says what to do."""
    tight.open(context="a b c d " * 75, query=" a")
    problem = tight.view("attribution").inner_text()
    assert "Shorten the context or the query." in problem
    assert "never_fits" in problem


def test_body_that_is_too_large_gets_advice(browser: Browser, tiny_folder: Any) -> None:
    """A text above the limit on bytes is one problem with its limit and with what to do."""
    from tests.web.browser import explorer

    with (
        served(model=tiny_folder, max_body_bytes=2000) as running,
        explorer(browser, running.url) as tab,
    ):
        tab.open(context="abc. " * 500, query="ab")
        alert = tab.page.get_by_role("alert").inner_text()
        assert "Shorten the context or the query." in alert
        assert "body_too_large" in alert
