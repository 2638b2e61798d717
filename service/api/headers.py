"""Security headers for browsers."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders

EVERYWHERE: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Headers of every answer."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Policy of the service's pages: they load from and call this service only, run no inline script,
and no page frames them."""


def protect(headers: MutableHeaders, method: str) -> None:
    """Add the security headers to an answer.

    Args:
        headers: Headers of the answer.
        method: Method of the request. Answers to POST are never stored.
    """
    for name, value in EVERYWHERE.items():
        headers[name] = value
    if method == "POST":
        headers.setdefault("Cache-Control", "no-store")
    if headers.get("content-type", "").startswith("text/html"):
        headers["Content-Security-Policy"] = PAGE_POLICY
