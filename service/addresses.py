"""Hosts, origins and path prefixes of settings, in the form in which browsers send them."""

from __future__ import annotations

import ipaddress
import re

ANY = "*"
LABEL = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
NAME = re.compile(rf"({LABEL}\.)*(?![0-9]+$){LABEL}")
"""A host name. Browsers read a name whose last label is a number as an IPv4 address."""
ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[^]]*\]|[^][/:@?#]*)(:[0-9]{1,5})?/?")
DEFAULT_PORTS = {"http": 80, "https": 443}
"""Ports that browsers leave out of `Origin`."""
PREFIX = re.compile(r"(/(?!\.)[A-Za-z0-9._~-]+)+")
OWN_STEPS = frozenset(
    {"docs", "health", "livez", "metrics", "openapi.json", "problems", "readyz", "v1", "web"}
)
"""First steps of the service's own paths."""


def read_host(value: str) -> str:
    """Normalise a host name or an IP address: lower case, no brackets, no trailing dot.

    Raises:
        ValueError: `Host` could never equal it.
    """
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        return ipaddress.ip_address(bare).compressed
    except ValueError:
        name = bare.lower().removesuffix(".")
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{value!r} is not a host: give an ASCII name or an IP address, without scheme, port, "
            "path or wildcard"
        )
    return name


def read_allowed_host(value: str) -> str:
    """Normalise a host; `*` stands for any."""
    return value if value == ANY else read_host(value)


def read_origin(value: str) -> str:
    """Normalise an origin: lower case, no slash at the end, no default port; `*` stands for any.

    Raises:
        ValueError: `Origin` could never equal it.
    """
    if value == ANY:
        return value
    parts = ORIGIN.fullmatch(value.lower())
    port = int(parts[3][1:]) if parts is not None and parts[3] else None
    if parts is None or (port or 0) > 65535:
        raise ValueError(
            f"{value!r} is not an origin: give scheme://host or scheme://host:port, without a path"
        )
    scheme, host = parts[1], read_host(parts[2])
    written = f"[{host}]" if ":" in host else host
    shown = "" if port in (None, DEFAULT_PORTS.get(scheme)) else f":{port}"
    return f"{scheme}://{written}{shown}"


def read_root_path(value: str) -> str:
    """Normalise a path prefix: a slash at its start, none at its end; empty for none.

    Raises:
        ValueError: It is not a path, or hides one of the service's own.
    """
    path = "/" + value.strip("/")
    if path == "/":
        return ""
    if not PREFIX.fullmatch(path):
        raise ValueError(
            f"{value!r} is not a path prefix: give letters, digits and `.`, `_`, `~`, `-` between "
            "slashes, such as `/deltaw`"
        )
    if path.split("/")[1] in OWN_STEPS:
        raise ValueError(f"{value!r} begins like a path of the service: choose another prefix")
    return path
