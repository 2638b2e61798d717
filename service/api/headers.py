"""Headers that keep a browser from doing more with an answer than it should."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders

EVERYWHERE: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""On whatever is answered."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a page of ours may do: load and ask this service, run nothing inline, be framed nowhere."""


def protect(headers: MutableHeaders, method: str) -> None:
    """Add what is not there yet.

    Args:
        headers: Of the answer.
        method: Of the request; what a POST is answered is never stored.
    """
    for name, value in EVERYWHERE.items():
        headers[name] = value
    if method == "POST":
        headers.setdefault("Cache-Control", "no-store")
    if headers.get("content-type", "").startswith("text/html"):
        headers["Content-Security-Policy"] = PAGE_POLICY
