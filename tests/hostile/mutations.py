"""Valid requests whose bytes were mutated."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from tests.api.wire import CANARY
from tests.hostile.raw import get, post

PAIR = {"context": f"abc the {CANARY}", "query": " cd", "layers": [0]}
CHUNKED = (
    b"POST /v1/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Transfer-Encoding: chunked\r\n\r\n8\r\n{"prompt\r\n9\r\ns": ["a"]\r\n1\r\n}\r\n0\r\n\r\n'
)
LINES = b"".join(
    json.dumps(PAIR | {name: value}).encode() + b"\n"
    for name, value in (("query", "b"), ("layers", [9]), ("include", []), ("query", CANARY))
)
GOOD: tuple[bytes, ...] = (
    *(
        post(json.dumps(PAIR | changes).encode(), path=f"/v1/{name}")
        for name, changes in (
            ("weight-updates", {"include": ["factors", "bias", "next_tokens"]}),
            ("weight-updates", {"baseline": {"without": [[0, 1]]}, "encoding": "base64"}),
            ("equivalence-checks", {"scope": "model", "precision": "float64"}),
            ("equivalence-checks", {"baseline": "alone", "controls": False, "tolerance": 1e-5}),
            ("trajectories", {"spans": None}),
            ("attributions", {"context": [1, 2, 3, 4], "spans": [[0, 1], [2, 4]]}),
        )
    ),
    post(json.dumps({"prompts": [CANARY, [1, 2]], "reduce": "norm"}).encode(), "Accept: */*"),
    post(json.dumps({"context": "a", "query": "b"}).encode(), path="/v1/tokenize"),
    *(
        post(
            json.dumps({"prompt": CANARY, "max_tokens": 4} | more).encode(), path="/v1/completions"
        )
        for more in (
            {"stream": True, "stop": [CANARY], "logprobs": 2},
            {"patch": {"context": CANARY, "recompute": "new"}, "agreement": True},
            {"patch": {"context": CANARY}, "stream": True, "capture": {"layers": [0]}},
            {"model": CANARY, "stream_options": None, "echo": True, "seed": 5},
        )
    ),
    get("/v1/models", "Accept: application/json"),
    CHUNKED,
    post(LINES, media="application/x-ndjson"),
    post(LINES * 9, "Accept: application/x-ndjson", media="application/x-ndjson"),
    post(b'{"prompts": ["a"]}\r\n\n' * 3, path="/v1/tokenize", media="application/x-ndjson"),
    get("/v1/model", "Accept: application/json", "X-Request-ID: abc"),
    get("/problems/validation", "Authorization: Bearer zqcanaryqz"),
    get("/docs/assets/favicon.png", "Range: bytes=0-5", "If-None-Match: zqcanaryqz"),
    get("/metrics"),
    get("/livez", "Connection: Upgrade", "Upgrade: h2c"),
)
WORDS: tuple[bytes, ...] = (
    b"\x00",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\\u0000",
    b"%00",
    b"%ff",
    b"../",
    b"[" * 300,
    b'{"a":' * 300,
    b"1e400",
    b"-1",
    b"9" * 400,
    b"NaN",
    b"null",
    b"true",
    b'"',
    b"\\",
    b"Content-Length: 0\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b"Host: zqcanaryqz.example\r\n",
    b"ffffffffffffffff\r\n",
    b" HTTP/1.0\r\n",
    b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"x" * 5000,
)
Mutation = Callable[[random.Random, bytes], bytes]


def flipped(dice: random.Random, sent: bytes) -> bytes:
    """Flip one bit."""
    at = dice.randrange(len(sent))
    return sent[:at] + bytes([sent[at] ^ 1 << dice.randrange(8)]) + sent[at + 1 :]


def without(dice: random.Random, sent: bytes) -> bytes:
    """Remove a piece."""
    at = dice.randrange(len(sent))
    return sent[:at] + sent[at + dice.randint(1, 20) :]


def with_word(dice: random.Random, sent: bytes) -> bytes:
    """Insert a word."""
    at = dice.randrange(len(sent))
    return sent[:at] + dice.choice(WORDS) + sent[at:]


def with_line(dice: random.Random, sent: bytes) -> bytes:
    """Insert a word as a line."""
    lines = sent.split(b"\r\n")
    lines.insert(dice.randrange(len(lines)), dice.choice(WORDS).removesuffix(b"\r\n"))
    return b"\r\n".join(lines)


def repeated(dice: random.Random, sent: bytes) -> bytes:
    """Repeat a piece."""
    start = dice.randrange(len(sent))
    end = start + dice.randint(1, 60)
    return sent[:end] + sent[start:end] * dice.randint(1, 30) + sent[end:]


def cut(dice: random.Random, sent: bytes) -> bytes:
    """Cut off the end."""
    return sent[: dice.randrange(len(sent))]


def spliced(dice: random.Random, sent: bytes) -> bytes:
    """Continue with the end of another request."""
    other = dice.choice(GOOD)
    return sent[: dice.randrange(len(sent))] + other[dice.randrange(len(other)) :]


def followed(dice: random.Random, sent: bytes) -> bytes:
    """Append another request, a word or random bytes."""
    return sent + dice.choice((*GOOD, *WORDS, dice.randbytes(200)))


def noise(dice: random.Random, sent: bytes) -> bytes:
    """Replace everything with random bytes."""
    return dice.randbytes(len(sent))


MUTATIONS: tuple[Mutation, ...] = (
    flipped,
    flipped,
    without,
    with_word,
    with_word,
    with_line,
    repeated,
    cut,
    spliced,
    followed,
    followed,
    noise,
)


def mutated(dice: random.Random) -> list[bytes]:
    """A mutated request, in the pieces in which it is sent."""
    sent = dice.choice(GOOD)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
        if sent:
            sent = dice.choice(MUTATIONS)(dice, sent)
    if dice.random() < 0.8 or len(sent) < 3:
        return [sent]
    at = sorted(dice.sample(range(1, len(sent)), min(len(sent) - 1, dice.randint(1, 4))))
    return [sent[a:b] for a, b in zip([0, *at], [*at, len(sent)], strict=True)]
