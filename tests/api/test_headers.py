"""Security headers, CORS, and `Host`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.routing import host_name
from service.settings import Settings
from tests.api.conftest import Heard
from tests.api.test_bodies import PATHS
from tests.api.wire import CANARY, client_of, problem
from tests.hostile import raw
from tests.service_process import Served, served

ORIGIN = "https://notebook.example"
GOOD = {"prompts": ["a"]}


@pytest.fixture(scope="module")
def named(tiny_folder: Path) -> Iterator[Served]:
    """A server that pages of one origin may call, and that has a further name."""
    settings: dict[str, Any] = {"cors_origins": f"{ORIGIN}/", "allowed_hosts": "Notebook.example"}
    with served(model=tiny_folder, **settings) as one:
        yield one


@pytest.mark.parametrize("path", ["/livez", "/docs", "/openapi.json", "/nope", "/metrics", "/"])
def test_every_answer_has_security_headers(tiny_client: httpx.Client, path: str) -> None:
    """No answer may be sniffed, and none passes a referrer on."""
    answer = tiny_client.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "server" not in answer.headers


@pytest.mark.parametrize("path", [*PATHS.values(), "/livez", "/nope", "/docs"])
def test_answers_to_posts_are_not_stored(tiny_client: httpx.Client, path: str) -> None:
    """No cache stores the answer to a POST."""
    for body in (GOOD, {}):
        assert tiny_client.post(path, json=body).headers["cache-control"] == "no-store"


def test_docs_page_has_a_policy_that_it_keeps(tiny_client: httpx.Client) -> None:
    """The page loads its parts from the service alone and has no inline script or style."""
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
        assert 'src="docs/' in attributes
        assert inline == ""
    assert "content-security-policy" not in tiny_client.get("/livez").headers


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("origin", [ORIGIN, "null", f"https://{CANARY}"])
def test_no_origin_may_call_by_default(tiny_client: httpx.Client, method: str, origin: str) -> None:
    """Without `cors_origins` no answer has a CORS header."""
    path = PATHS["tokenize"] if method != "GET" else "/v1/model"
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = tiny_client.request(method, path, json=GOOD, headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_only_the_configured_origin_may_call(named: Served) -> None:
    """The service grants the configured origin, given with a slash at its end, and no other."""
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
def test_foreign_host_returns_421(tiny_client: httpx.Client, host: str, path: str) -> None:
    """A service on the loopback without a key refuses other names: a web page cannot reach it by
    letting its own name resolve to this machine."""
    method = "POST" if path in PATHS.values() else "GET"
    problem(tiny_client.request(method, path, json=GOOD, headers={"Host": host}), "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8000", "[::1]"])
def test_own_hosts_are_accepted_with_any_port(tiny_client: httpx.Client, host: str) -> None:
    """The names of the loopback are accepted on any port, since there may be a tunnel between."""
    assert tiny_client.get("/v1/model", headers={"Host": host}).status_code == 200


def test_allowed_host_is_accepted(named: Served) -> None:
    """A name in `allowed_hosts` is accepted in any case, and no other is."""
    with client_of(named) as client:
        for host, code in (("notebook.example", 200), ("notebook.example.", 200), ("x", 421)):
            assert client.get("/v1/model", headers={"Host": host}).status_code == code


def test_any_host_is_accepted_with_a_key(narrow: Heard) -> None:
    """A service with a key accepts any name: a foreign page does not know the key."""
    headers = {"Host": "gateway.example"}
    assert narrow.client.get("/v1/model", headers=headers).status_code == 200


def test_hosts_are_checked_on_the_loopback_or_where_configured() -> None:
    """The service checks `Host` on the loopback without a key, or where `allowed_hosts` is set."""

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
def test_host_name_drops_the_port(value: str, name: str) -> None:
    """A host is compared in lower case, without its port and the dot at its end."""
    assert host_name(value) == name


ONE = b"Host: localhost\r\n"
BAD_HOSTS = {
    "none": b"",
    "two": ONE + b"Host: 127.0.0.1\r\n",
    "the same twice": ONE + ONE,
    "a space": b"Host: local host\r\n",
    "a path": b"Host: localhost/x\r\n",
    "no port": b"Host: localhost:http\r\n",
    "half a bracket": b"Host: [::1\r\n",
}


@pytest.mark.parametrize("hosts", BAD_HOSTS.values(), ids=BAD_HOSTS)
@pytest.mark.parametrize("path", [b"/livez", b"/nope", b"/v1/tokenize"])
@pytest.mark.parametrize("keys", [False, True], ids=["without keys", "with keys"])
def test_anything_but_one_valid_host_returns_400(
    tiny_service: Served, narrow: Heard, keys: bool, path: bytes, hosts: bytes
) -> None:
    """HTTP/1.1 demands exactly one valid `Host`, whatever hosts the service accepts; the connection
    is closed (RFC 9112, 3.2)."""
    running = narrow.served if keys else tiny_service
    sent = b"GET " + path + b" HTTP/1.1\r\n" + hosts + b"\r\n"
    (answer,) = raw.exchange(running, sent)
    raw.problem(answer, "malformed_request")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(("hosts", "status"), [(b"", 200), (ONE, 200), (ONE + ONE, 400)])
def test_http_1_0_needs_no_host(tiny_service: Served, hosts: bytes, status: int) -> None:
    """HTTP/1.0 may leave `Host` out, and may not repeat it either."""
    (answer,) = raw.exchange(tiny_service, b"GET /livez HTTP/1.0\r\n" + hosts + b"\r\n")
    assert answer.status == status
