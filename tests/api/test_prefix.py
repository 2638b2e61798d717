"""A path prefix: behind a proxy that strips it, behind one that does not, and in a mount."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from fastapi import FastAPI

from deltaw_client import DeltawClient
from service.addresses import OWN_STEPS
from service.main import create_app
from service.settings import Settings
from tests.api.wire import log_of, problem
from tests.proxy import proxied
from tests.service_process import Served, served

PREFIX = "/some/prefix"
REFERENCE = re.compile(r'(?:src|href)="([^"#]+)"|url: "([^"]+)"')


@pytest.fixture(scope="module")
def prefixed(tiny_folder: Path) -> Iterator[Served]:
    """A service with `root_path`."""
    with served(model=tiny_folder, root_path=PREFIX) as running:
        yield running


@pytest.fixture(scope="module", params=["stripped", "passed on", "stripped, without root_path"])
def base(request: pytest.FixtureRequest, prefixed: Served, tiny_service: Served) -> Iterator[str]:
    """The address of a service behind a proxy."""
    service = tiny_service if "without" in request.param else prefixed
    with proxied(service.url, PREFIX, strip=request.param != "passed on") as url:
        yield url


@pytest.mark.parametrize("page", ["docs", ""])
def test_every_reference_of_a_page_loads(base: str, page: str) -> None:
    """Every address that a page names is below the prefix and answers, as a browser resolves it."""
    answer = httpx.get(f"{base}/{page}")
    assert answer.status_code == 200
    found = {next(filter(None, groups)) for groups in REFERENCE.findall(answer.text)}
    local = {urljoin(f"{base}/{page}", name) for name in found if not name.startswith("https:")}
    assert len(local) >= 4
    for url in local:
        assert url.startswith(f"{base}/")
        assert httpx.get(url).status_code == 200, url


def test_docs_script_loads_the_document_below_the_prefix(base: str) -> None:
    """The script of `/docs` names the OpenAPI document relative to the page."""
    (named,) = re.findall(r'url: "([^"]+)"', httpx.get(f"{base}/docs/start.js").text)
    document = httpx.get(urljoin(f"{base}/docs", named))
    assert document.json()["info"]["title"] == "deltaw"


def test_client_works_below_the_prefix(base: str) -> None:
    """The client takes an address with a prefix."""
    with DeltawClient(base) as client:
        assert client.model().n_layers == 3
        assert client.tokenize(["a"]).prompts


def test_problem_type_has_no_prefix(base: str) -> None:
    """A problem's `type` is the same everywhere, and resolves below the prefix."""
    answer = httpx.get(f"{base}/nope")
    said = answer.json()
    assert (answer.status_code, said["type"]) == (404, "/problems/not_found")
    assert httpx.get(base + said["type"]).json()["code"] == "not_found"


@pytest.mark.parametrize("strip", [True, False])
def test_document_names_the_prefix_as_its_server(prefixed: Served, strip: bool) -> None:
    """Clients that are made from the OpenAPI document call below the prefix."""
    with proxied(prefixed.url, PREFIX, strip=strip) as base:
        assert httpx.get(f"{base}/openapi.json").json()["servers"] == [{"url": PREFIX}]


def test_document_without_prefix_names_no_server(tiny_client: httpx.Client) -> None:
    """Without a prefix the document leaves the server to its own address."""
    assert "servers" not in tiny_client.get("/openapi.json").json()


def test_both_forms_of_a_path_are_served(prefixed: Served) -> None:
    """A probe that does not come through the proxy needs no prefix."""
    for path in ("/readyz", "/docs", "/docs/assets/swagger-ui.css", "/web/js/main.js", "/v1/model"):
        for url in (prefixed.url + path, prefixed.url + PREFIX + path):
            assert httpx.get(url).status_code == 200, url
    problem(httpx.get(prefixed.url + PREFIX + PREFIX), "not_found")
    assert httpx.get(f"{prefixed.url}{PREFIX}ed/livez").status_code == 404


def test_bare_prefix_redirects_to_the_page(prefixed: Served) -> None:
    """Without its slash the page's relative references would miss the prefix."""
    answer = httpx.get(prefixed.url + PREFIX)
    assert (answer.status_code, answer.headers["location"]) == (307, f"{PREFIX}/")
    assert answer.headers["x-request-id"]


def test_metrics_and_log_name_routes_without_prefix(prefixed: Served) -> None:
    """A route has one name in metrics and logs, whichever form of its path was called."""
    answer = httpx.get(f"{prefixed.url}{PREFIX}/livez")
    line = log_of(prefixed).await_request(answer.headers["x-request-id"])
    assert line["route"] == "/livez"
    assert f'route="{PREFIX}' not in httpx.get(f"{prefixed.url}/metrics").text


def test_announcement_names_the_prefix(prefixed: Served) -> None:
    """The address and the command that the start prints have the prefix."""
    text = log_of(prefixed).text
    assert f"at {prefixed.url}{PREFIX}\n" in text
    assert f"curl -s {prefixed.url}{PREFIX}/v1/weight-updates" in text
    assert Settings(root_path=PREFIX, port=80).url == f"http://127.0.0.1:80{PREFIX}"


@pytest.mark.parametrize("root_path", ["", "/mounted", "/outer/mounted"])
def test_mounted_application_is_served(tmp_path: Path, root_path: str) -> None:
    """Another application may mount this one; `root_path` is then the whole prefix."""

    async def answers() -> list[httpx.Response]:
        outer = FastAPI()
        outer.mount("/mounted", create_app(Settings(model=str(tmp_path), root_path=root_path)))
        transport = httpx.ASGITransport(outer)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            paths = ("", "docs", "docs/assets/swagger-ui.css", "web/js/main.js", "openapi.json")
            return [await client.get(f"/mounted/{path}") for path in paths]

    found = asyncio.run(answers())
    assert [answer.status_code for answer in found] == [200] * 5
    assert found[-1].json()["servers"] == [{"url": root_path or "/mounted"}]


def test_own_steps_are_those_of_the_routes(tiny_client: httpx.Client, tmp_path: Path) -> None:
    """A prefix may not begin like any path that the service has."""
    document = tiny_client.get("/openapi.json").json()
    app = create_app(Settings(model=str(tmp_path)))
    paths = {*document["paths"], *(getattr(route, "path", "/") for route in app.routes), "/docs"}
    assert {path.split("/")[1] for path in paths} - {""} == OWN_STEPS
