"""The explorer's views in a real Chromium: each shows the numbers of the service."""

from __future__ import annotations

import csv
import io
import math
import re
from typing import TYPE_CHECKING

import httpx
import pytest

from schemas.pairs import SEED_CONTEXT, SEED_QUERY
from tests.service_process import Served
from tests.web.questions import CHARTS, SEED, SENTENCES, VIEWS, answer, close

if TYPE_CHECKING:
    from tests.web.browser import Explorer

pytestmark = pytest.mark.slow


def test_page_asks_the_seed_question_by_itself(tab: Explorer) -> None:
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
    """No action asks another host, and none breaks the page's policy."""
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
    assert chart.locator("path.control").count() == 4 * (len(rows) + 1)
    assert chart.locator("path.exact").count() == len(rows) + 1


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
        (weight,) = update["weights"]
        assert row["weight"] == weight["name"]
        assert close(row["norm"], update["norm"])
        assert close(row["relative_norm"], weight["relative_norm"])
        assert close(row["mlp_in_cosine"], update["mlp_in"]["cosine"])
        assert close(row["resid_mid_norm_difference"], update["resid_mid"]["norm_difference"])
    cells = tab.view("updates").locator("svg g.picks rect[data-mark]")
    assert cells.count() == len(told)
    colours = [cell.get_attribute("fill") for cell in cells.all()]
    strongest = max(range(len(told)), key=lambda i: told[i]["weights"][0]["relative_norm"])
    assert colours[strongest] == min(colours, key=lambda colour: int(str(colour)[1:3], 16))


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


def test_nulls_are_shown_with_their_reason(tab: Explorer) -> None:
    """A control that cannot be formed is said with its reason, and is no 0 in the numbers."""
    tab.open(context="The", query=" capital")
    assert "Not formed at any layer" in tab.view("equivalence").inner_text()
    assert {row["shuffled_context"] for row in tab.numbers("equivalence")} == {"null"}
    table = list(csv.DictReader(io.StringIO(tab.saved("equivalence", "CSV").decode())))
    assert {row["shuffled_context"] for row in table} == {""}


def test_explored_model_is_bundled(api: httpx.Client, explored: Served) -> None:
    """These tests look at the model that ships with the package."""
    assert api.get("/v1/model").json()["model"]["id"] == "bundled"
    assert explored.process.poll() is None
