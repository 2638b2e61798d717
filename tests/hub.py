"""A hub on this machine: a real HTTP server that gives the files of a folder, or fails to."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.service_process import free_port

Address = Callable[[Path], AbstractContextManager[tuple[str, list[str]]]]
"""Opens an address for a folder; gives its URL, and the names of the files that are downloaded."""
REPOSITORY = "deltaw/tiny"
COMMIT = "0123456789abcdef" * 2 + "01234567"
STALL_SECONDS = 3.0


class Hub(BaseHTTPRequestHandler):
    """A hub with one repository of one commit."""

    folder: Path
    downloads: list[str]

    def do_GET(self) -> None:
        """Answer a request for the revision, for the list of files, or for a file."""
        path = urlsplit(self.path).path
        api, files = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/{COMMIT}/"
        if path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self.send(200, json.dumps({"id": REPOSITORY, "sha": COMMIT}).encode())
        elif path == f"{api}/tree/{COMMIT}":
            found = [file for file in sorted(self.folder.iterdir()) if file.is_file()]
            self.send(200, json.dumps([self._listed(file) for file in found]).encode())
        elif path.startswith(files) and (self.folder / path.removeprefix(files)).is_file():
            name = path.removeprefix(files)
            if self.command == "GET":
                self.downloads.append(name)
            self.send_file(self.folder / name)
        else:
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    do_HEAD = do_GET

    def send_file(self, file: Path) -> None:
        """Send a whole file."""
        self.send(200, file.read_bytes(), self.described(file))

    def described(self, file: Path) -> dict[str, str]:
        """The headers from which a client learns what a file is."""
        return {"ETag": f'"{_oid(file)}"', "X-Repo-Commit": COMMIT}

    def send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, missing: int = 0
    ) -> None:
        """Send an answer, the last `missing` bytes of its body excepted."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) - missing])

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _listed(self, file: Path) -> dict[str, Any]:
        size = file.stat().st_size
        return {"type": "file", "path": file.name, "size": size, "oid": _oid(file)}


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


class Nonsense(Hub):
    """A hub that answers everything with a page of HTML."""

    def do_GET(self) -> None:
        """Send the page."""
        self.send(200, b"<html>maintenance</html>")

    do_HEAD = do_GET


class Failing(Hub):
    """A hub that answers everything with one status."""

    status = 500
    code = "ServerError"

    def do_GET(self) -> None:
        """Send the status."""
        self.send(self.status, b"{}", {"X-Error-Code": self.code})

    do_HEAD = do_GET


class Unauthorized(Failing):
    """A hub that wants a token."""

    status, code = 401, "Unauthorized"


class Forbidden(Failing):
    """A hub that forbids everything."""

    status, code = 403, "Forbidden"


class Gated(Failing):
    """A hub whose repository wants its terms accepted."""

    status, code = 403, "GatedRepo"


class Unknown(Failing):
    """A hub without the repository."""

    status, code = 404, "RepoNotFound"


class Cut(Hub):
    """A hub that ends every weights file in its middle."""

    def send_file(self, file: Path) -> None:
        """Send half of a weights file, all of another."""
        body = file.read_bytes()
        half = len(body) // 2 if file.suffix == ".safetensors" else 0
        self.send(200, body, self.described(file), missing=half)
        self.close_connection = True


class Held(Hub):
    """A hub that sends no weights before they are released."""

    released: threading.Event

    def send_file(self, file: Path) -> None:
        """Send a file; weights only after the release."""
        if file.suffix == ".safetensors" and self.command == "GET":
            self.released.wait(STALL_SECONDS * 10)
        super().send_file(file)


class Stalling(Cut):
    """A hub that sends half of a weights file, and then nothing."""

    def send_file(self, file: Path) -> None:
        """Send half and keep the connection."""
        super().send_file(file)
        if file.suffix == ".safetensors" and self.command == "GET":
            self.wfile.flush()
            time.sleep(STALL_SECONDS)


@contextmanager
def held(folder: Path) -> Iterator[tuple[str, threading.Event]]:
    """Serve a folder without its weights; the URL of the hub, and the event that releases them."""
    event = threading.Event()
    handler = type("HeldOnce", (Held,), {"released": event})
    with hub(handler, folder) as (url, _):
        try:
            yield url, event
        finally:
            event.set()


@contextmanager
def hub(handler: type[Hub], folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder; the URL of the hub, and the names of the files that are downloaded."""
    downloads: list[str] = []
    made = type("Serving", (handler,), {"folder": folder, "downloads": downloads})
    with ThreadingHTTPServer(("127.0.0.1", 0), made) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", downloads
        finally:
            server.shutdown()
            thread.join()


def online(url: str, cache: Path, timeout: int = 1) -> dict[str, str]:
    """The environment of a process that downloads from this hub.

    Args:
        url: The hub.
        cache: Folder of the hub's cache.
        timeout: Seconds that the hub may stay silent.
    """
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_ETAG_TIMEOUT": str(timeout),
        "HF_HUB_DOWNLOAD_TIMEOUT": str(timeout),
    }


@contextmanager
def nobody(_folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The URL of an address where nobody listens."""
    yield f"http://127.0.0.1:{free_port()}", []


@contextmanager
def silent(_folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The URL of an address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", []
