"""Headers for browsers: what may be sniffed, stored, framed, run, called from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.api.hosts import host_name
from service.settings import Settings
from tests.api.conftest import Heard
from tests.api.test_bodies import PATHS
from tests.api.wire import CANARY, client_of, problem
from tests.service_process import Served, served

ORIGIN = "https://notebook.example"
GOOD = {"prompts": ["a"]}


@pytest.fixture(scope="module")
def named(tiny_folder: Path) -> Iterator[Served]:
    """A server that one page elsewhere may call, and that has a further name."""
    with served(model=tiny_folder, cors_origins=ORIGIN, allowed_hosts="notebook.example") as one:
        yield one


@pytest.mark.parametrize("path", ["/livez", "/docs", "/openapi.json", "/nope", "/metrics", "/"])
def test_everywhere(tiny_client: httpx.Client, path: str) -> None:
    """No answer is sniffed, and none says where its reader came from."""
    answer = tiny_client.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "server" not in answer.headers


@pytest.mark.parametrize("path", [*PATHS.values(), "/livez", "/nope", "/docs"])
def test_posts_are_not_stored(tiny_client: httpx.Client, path: str) -> None:
    """Whatever a POST is answered is not stored."""
    for body in (GOOD, {}):
        assert tiny_client.post(path, json=body).headers["cache-control"] == "no-store"


def test_pages(tiny_client: httpx.Client) -> None:
    """A page has a policy that its own parts keep: all of them from here, nothing inline."""
    page = tiny_client.get("/docs")
    policy = dict(
        part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page.text)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page.text, re.DOTALL)
    assert len(scripts) == 2
    for attributes, inline in scripts:
        assert 'src="/' in attributes
        assert inline == ""
    assert "content-security-policy" not in tiny_client.get("/livez").headers


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("origin", [ORIGIN, "null", f"https://{CANARY}"])
def test_no_cors_by_default(tiny_client: httpx.Client, method: str, origin: str) -> None:
    """Where no origin is named, no page elsewhere may read an answer or ask before it calls."""
    path = PATHS["tokenize"] if method != "GET" else "/v1/model"
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = tiny_client.request(method, path, json=GOOD, headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_cors_where_named(named: Served) -> None:
    """The origin that is named may call, and no other."""
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,authorization",
    }
    with client_of(named) as client:
        for origin, allowed in ((ORIGIN, True), (f"https://{CANARY}", False), ("null", False)):
            before = client.options(PATHS["tokenize"], headers=asked | {"Origin": origin})
            assert (before.status_code == 200) == allowed
            answer = client.post(PATHS["tokenize"], json=GOOD, headers={"Origin": origin})
            for said in (before, answer):
                granted = said.headers.get("access-control-allow-origin")
                assert granted == (origin if allowed else None)
                assert "access-control-allow-credentials" not in said.headers
                assert CANARY not in said.text + str(said.headers)


@pytest.mark.parametrize(
    "host", [f"{CANARY}.example", f"{CANARY}.example:8000", "127.0.0.1.example", "", "10.0.0.1"]
)
@pytest.mark.parametrize("path", [PATHS["tokenize"], "/v1/model", "/docs", "/nope", "/livez"])
def test_foreign_host(tiny_client: httpx.Client, host: str, path: str) -> None:
    """A service for this machine alone, without a key, is not called by another name: so a page
    cannot reach it by having its own name point here."""
    method = "POST" if path in PATHS.values() else "GET"
    problem(tiny_client.request(method, path, json=GOOD, headers={"Host": host}), "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8000", "[::1]"])
def test_own_host(tiny_client: httpx.Client, host: str) -> None:
    """This machine's own names do, on any port: there may be a tunnel between."""
    assert tiny_client.get("/v1/model", headers={"Host": host}).status_code == 200


def test_named_host(named: Served) -> None:
    """So does a name that is set, and still no other."""
    with client_of(named) as client:
        for host, code in (("notebook.example", 200), ("notebook.example.", 200), ("x", 421)):
            assert client.get("/v1/model", headers={"Host": host}).status_code == code


def test_key_suffices(narrow: Heard) -> None:
    """Where there is a key, any name does: a page that points here does not have it."""
    headers = {"Host": "gateway.example"}
    assert narrow.client.get("/v1/model", headers=headers).status_code == 200


def test_guarded_hosts() -> None:
    """Names are guarded without a key on this machine alone, or where some are set."""

    def hosts(**given: object) -> frozenset[str] | None:
        return Settings(_env_file=None, **given).hosts  # type: ignore[arg-type]

    own = frozenset({"localhost", "127.0.0.1", "::1"})
    assert hosts() == own
    assert hosts(host="127.0.0.2") == own | {"127.0.0.2"}
    assert hosts(allowed_hosts="A.example,b") == own | {"a.example", "b"}
    assert hosts(api_keys="k") is None
    assert hosts(host="0.0.0.0", insecure=True) is None
    assert hosts(allowed_hosts="*") is None
    assert hosts(api_keys="k", allowed_hosts="a") == own | {"a"}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("a.example", "a.example"),
        ("A.Example:80", "a.example"),
        ("a.example.:80", "a.example"),
        ("[::1]:80", "::1"),
        ("[::1", "::1"),
        ("", ""),
        (":80", ""),
    ],
)
def test_host_name(value: str, name: str) -> None:
    """A `Host` is read without its port, in any case."""
    assert host_name(value) == name
