"""httpx clients, with one error for each argument and environment variable that cannot be used."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.request import getproxies

import httpx

from deltaw_client.errors import ConnectionFailed, DeltawError, InvalidConfiguration, Timeout

H = TypeVar("H", httpx.Client, httpx.AsyncClient)

SCHEMES = ("http", "https")
PROXY_SCHEMES = (*SCHEMES, "socks5", "socks5h")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def http_client(make: Callable[..., H], url: str, api_key: str | None, transport: Any) -> H:
    """Build an httpx client. Without a transport it is HTTP, configured by the environment.

    Raises:
        InvalidConfiguration: An argument or an environment variable cannot be used.
    """
    _require_address("the service's URL", url, SCHEMES)
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise InvalidConfiguration("the API key must consist of printable ASCII characters")
    if transport is None:
        for name, proxy in _proxies().items():
            _require_address(name, proxy, PROXY_SCHEMES)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        return make(base_url=url, headers=headers, transport=transport)
    except ImportError as error:
        socks = [name for name, proxy in _proxies().items() if proxy.startswith("socks")]
        detail = f"{' or '.join(socks)} names a SOCKS proxy; run `pip install httpx[socks]`"
        raise InvalidConfiguration(detail) from error
    except OSError as error:
        # Only opening the key log gives the error a file name.
        name = "SSLKEYLOGFILE" if error.filename else "SSL_CERT_FILE"
        raise InvalidConfiguration(f"{name} cannot be used: {error}") from error
    except (httpx.InvalidURL, ValueError) as error:
        detail = (
            f"{_names('NO_PROXY')} cannot be used: {error}; list host names and IP addresses "
            "with commas, and no IPv6 networks"
        )
        raise InvalidConfiguration(detail) from error


def connection_error(error: httpx.RequestError) -> DeltawError:
    """Translate an error of httpx, and name the proxy variables that are set."""
    if isinstance(error, httpx.TimeoutException):
        return Timeout()
    names = _names(*PROXIES)
    hint = f" (proxy set by {names})" if names else ""
    detail = f"{type(error).__name__}: {error}{hint}"
    return ConnectionFailed(detail, sent=not isinstance(error, httpx.ConnectError))


def _require_address(name: str, address: str, schemes: tuple[str, ...]) -> None:
    """Raise `InvalidConfiguration`, without the address, since it may hold a password."""
    try:
        url = httpx.URL(address)
        # The name resolver refuses empty and overlong labels with a UnicodeError.
        host = url.host and url.raw_host.decode("ascii").encode("idna")
        port = 1 if url.port is None else url.port
    except (httpx.InvalidURL, UnicodeError):
        host, port = "", 0
    if not host or url.scheme not in schemes or not 0 < port < 65536:
        raise InvalidConfiguration(f"{name} is not an address such as http://127.0.0.1:8000")


def _proxies() -> dict[str, str]:
    """Proxy addresses by the name of their variable, read as httpx reads them."""
    found = getproxies()
    named = {name: found.get(name.lower().removesuffix("_proxy")) for name in PROXIES}
    return {
        _names(name) or name: proxy if "://" in proxy else f"http://{proxy}"
        for name, proxy in named.items()
        if proxy
    }


def _names(*variables: str) -> str:
    """Those of the variables that the environment sets, as they are spelled there."""
    return " or ".join(name for name in os.environ if name.upper() in variables)
