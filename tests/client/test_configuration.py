"""Arguments and environment variables that cannot be used raise `InvalidConfiguration`."""

from __future__ import annotations

import asyncio
import pickle

import httpx
import pytest

from deltaw_client import (
    AsyncDeltawClient,
    ConnectionFailed,
    DeltawClient,
    InvalidConfiguration,
    UnexpectedAnswer,
)
from tests.client.conftest import scripted
from tests.service_process import Served, free_port

CLIENTS = (DeltawClient, AsyncDeltawClient)
VARIABLES = [
    ("ALL_PROXY", "socks5://127.0.0.1:9"),
    ("ALL_PROXY", "gopher://127.0.0.1:9"),
    ("http_proxy", "http://[::1"),
    ("HTTP_PROXY", "http://user:secret:9@"),
    ("HTTP_PROXY", "http://user:secret@127.0.0.1:99999"),
    ("HTTPS_PROXY", "http://"),
    ("HTTPS_PROXY", "http://secret..example"),
    ("NO_PROXY", "localhost,fd07:b51a:cc66:f0::/64"),
    ("no_proxy", "a:b"),
    ("SSL_CERT_FILE", "/no/such/file"),
    ("SSL_CERT_FILE", __file__),
    ("SSLKEYLOGFILE", "/no/such/folder/keys"),
]


@pytest.mark.parametrize("make", CLIENTS)
@pytest.mark.parametrize(("name", "value"), VARIABLES)
def test_unusable_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, make: type, name: str, value: str
) -> None:
    """Both clients name the variable in one sentence, without a password in it."""
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidConfiguration, match=f"^{name} ") as raised:
        make("http://127.0.0.1:8000")
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("make", CLIENTS)
@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "127.0.0.1:8000",
        "ftp://localhost",
        "http://",
        "http://[::1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://127.0.0.1:-1",
        "http://a..b",
        f"http://{'a' * 64}.example",
        "http://xn--a",
        "http://\udcff",
        "http://256.256.256.256",
        "http://127.0.0.1/\0",
    ],
)
def test_unusable_url_is_refused(make: type, url: str) -> None:
    """A URL that no request could be sent to is refused when the client is built."""
    with pytest.raises(InvalidConfiguration, match=r"^the service's URL is not an address"):
        make(url)


@pytest.mark.parametrize("make", CLIENTS)
@pytest.mark.parametrize("key", ["open\nsesame", "séame", "\udcff"])
def test_unusable_key_is_refused_and_not_repeated(make: type, key: str) -> None:
    """A key that a header cannot hold is refused; the message does not contain it."""
    with pytest.raises(InvalidConfiguration, match="API key") as raised:
        make("http://127.0.0.1:8000", api_key=key)
    assert key not in str(raised.value)


def test_error_can_be_pickled() -> None:
    """A process pool can hand the error over."""
    error = pickle.loads(pickle.dumps(InvalidConfiguration("NO_PROXY cannot be used")))
    assert (type(error), str(error)) == (InvalidConfiguration, "NO_PROXY cannot be used")


def test_own_transport_ignores_the_environment(
    monkeypatch: pytest.MonkeyPatch, tiny_service: Served
) -> None:
    """A client with a transport of the caller's does not read proxy variables."""
    transport = httpx.HTTPTransport()
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with DeltawClient(tiny_service.url, transport=transport) as client:
        assert client.model().n_layers == 3


def test_failed_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that fails while a proxy is set says which variable sets it."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")

    async def ask() -> None:
        async with AsyncDeltawClient("http://127.0.0.1:8000", retries=0) as client:
            await client.model()

    with pytest.raises(ConnectionFailed, match="HTTP_PROXY"):
        asyncio.run(ask())
    with (
        DeltawClient("http://127.0.0.1:8000", retries=0) as client,
        pytest.raises(ConnectionFailed, match="HTTP_PROXY"),
    ):
        client.model()


def test_infinite_deadline_is_accepted() -> None:
    """A client without a deadline waits for an answer, although sockets refuse infinity."""
    page = (200, {"Content-Type": "text/html"}, b"<html>")
    with (
        scripted(page) as service,
        DeltawClient(service.url, deadline_seconds=float("inf")) as client,
        pytest.raises(UnexpectedAnswer),
    ):
        client.model()
