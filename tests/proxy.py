"""A small reverse proxy that serves a service below a path prefix, and nothing beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

HOP_BY_HOP = {"connection", "transfer-encoding"}


@contextmanager
def proxied(url: str, prefix: str, *, strip: bool) -> Iterator[str]:
    """The address of a service behind a proxy, with the prefix.

    Args:
        url: Address of the service.
        prefix: Path prefix, such as `/deltaw`; the proxy answers 502 to every other path.
        strip: Whether the proxy strips the prefix before it passes a request on.
    """
    with httpx.Client(timeout=60.0, trust_env=False) as upstream:

        class Proxy(BaseHTTPRequestHandler):
            """Passes on what comes below the prefix."""

            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                """Pass a request on, and its answer back."""
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                below = self.path == prefix or self.path.startswith(f"{prefix}/")
                path = self.path.removeprefix(prefix) if strip else self.path
                if below and path:
                    headers = dict(self.headers.items())
                    passed = upstream.request(
                        self.command, url + path, headers=headers, content=body
                    )
                else:
                    passed = httpx.Response(502)
                self.send_response(passed.status_code)
                for name, value in passed.headers.multi_items():
                    if name not in HOP_BY_HOP | {"content-length", "content-encoding"}:
                        self.send_header(name, value)
                length = passed.headers.get("content-length", "0")
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(passed.content)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}{prefix}"
            finally:
                server.shutdown()
                thread.join()
