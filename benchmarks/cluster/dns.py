"""DNS server for the addresses of a fleet's replicas, in place of that of Kubernetes or Docker."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager

HEADER_BYTES = 12
ADDRESS, INTERNET = 1, 1
"""Type `A` and class `IN`."""
RESPONSE = 0x8580
"""Flags: a response, authoritative, recursion desired and available, no error."""
POINTER = 0xC000 | HEADER_BYTES
"""Compressed name: a pointer to the name in the question."""
SECONDS = 1
"""Time to live of a record."""


@contextmanager
def name_server(addresses: MutableSequence[str]) -> Iterator[str]:
    """Run a DNS server that answers each question for an IPv4 address, whatever the name is.

    Args:
        addresses: Addresses for the answers. The caller may change them while the server runs.

    Yields:
        Address and port of the server.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=_serve, args=(server, addresses), daemon=True)
        thread.start()
        host, port = server.getsockname()
        try:
            yield f"{host}:{port}"
        finally:
            server.sendto(b"", (host, port))
            thread.join()


def _serve(server: socket.socket, addresses: MutableSequence[str]) -> None:
    """Answer until an empty packet comes."""
    while packet := server.recvfrom(4096):
        asked, sender = packet
        if not asked:
            return
        server.sendto(answer(asked, list(addresses)), sender)


def answer(asked: bytes, addresses: list[str]) -> bytes:
    """Return the response to a query with one question (RFC 1035, 4.1).

    Args:
        asked: The query.
        addresses: IPv4 addresses of the name. A question of another type gets none.
    """
    (name,) = struct.unpack_from("!H", asked)
    end = asked.index(b"\0", HEADER_BYTES) + 5
    kind, _ = struct.unpack_from("!HH", asked, end - 4)
    found = addresses if kind == ADDRESS else []
    head = struct.pack("!HHHHHH", name, RESPONSE, 1, len(found), 0, 0)
    records = [
        struct.pack("!HHHIH", POINTER, ADDRESS, INTERNET, SECONDS, 4) + socket.inet_aton(one)
        for one in found
    ]
    return b"".join((head, asked[HEADER_BYTES:end], *records))
