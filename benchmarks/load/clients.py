"""`python -m benchmarks.load.clients PORT SECONDS RECORDS KIND=COUNT…`: clients of several kinds.

Each request becomes one JSON line in RECORDS: id, path, outcome, status, problem code and seconds.
Its outcome is `answered` (200, whole and valid), `refused` (a problem), `left` (the client meant to
leave) or `lost` (anything else). An NDJSON request is `answered` if each of its lines was answered
or refused.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import httpx

ANSWER_SECONDS = 120.0
"""Seconds after which an answer counts as lost; the service's deadline is 60."""
BURST_SECONDS = 15.0
BUSY = (429, 503)
"""Statuses of a service that may answer later."""
WORDS = ("the", "capital", "of", "Germany", "is", "Berlin", "and", "a", "river", "runs", "through")
SAFETENSORS = "application/vnd.safetensors"
NDJSON = "application/x-ndjson"
EVENT_STREAM = "text/event-stream"
Chance = random.Random


class Drawn(NamedTuple):
    """A request: path, JSON body (None sends a GET request, a list one body per line), `Accept`."""

    path: str
    body: Mapping[str, Any] | list[Mapping[str, Any]] | None
    accept: str = "*/*"


Send = Callable[[httpx.AsyncClient, httpx.Request, Chance], Awaitable[httpx.Response | None]]
"""Sends a request and reads its answer; returns None when the client left."""


class Kind(NamedTuple):
    """A kind of client.

    Args:
        wait: Seconds to wait before the next request, given when the last one began (epoch).
        draw: Draws a request.
        send: Sends it.
    """

    wait: Callable[[float], float]
    draw: Callable[[Chance], Drawn]
    send: Send


def text(chance: Chance, words: int) -> str:
    """Random words."""
    return " ".join(chance.choices(WORDS, k=words))


def pair(chance: Chance, words: int = 40, **options: Any) -> dict[str, Any]:
    """A query and a context; one context in four is one of ten that return."""
    if chance.random() < 0.25:
        context = text(random.Random(chance.randrange(10)), words)
    else:
        context = text(chance, chance.randint(3, words))
    return {"context": context, "query": " " + chance.choice(WORDS), **options}


UPDATES, CHECKS = "/v1/weight-updates", "/v1/equivalence-checks"
COMPLETIONS, ADAPTERS = "/v1/completions", "/v1/adapters"
MIXED: tuple[tuple[int, Callable[[Chance], Drawn]], ...] = (
    (6, lambda c: Drawn(UPDATES, pair(c, layers=[-1]))),
    (2, lambda c: Drawn(UPDATES, pair(c), SAFETENSORS)),
    (1, lambda c: Drawn(UPDATES, pair(c, include=["next_tokens"]))),
    (4, lambda c: Drawn(CHECKS, pair(c))),
    (1, lambda c: Drawn(CHECKS, pair(c, 20, scope="model"))),
    (1, lambda c: Drawn("/v1/trajectories", pair(c, 20, layers=[-1]))),
    (1, lambda c: Drawn("/v1/attributions", pair(c, 20, spans=[[0, 1]]))),
    (3, lambda c: Drawn("/v1/activations", {"prompts": [text(c, 30)]})),
    (3, lambda c: Drawn("/v1/tokenize", {"context": text(c, 30), "query": " a"})),
    (2, lambda c: Drawn(COMPLETIONS, {"prompt": text(c, 30), "seed": 1})),
    (1, lambda c: Drawn(COMPLETIONS, {"prompt": text(c, 30), "stream": True})),
    (1, lambda c: Drawn(COMPLETIONS, recomputed(c))),
    (1, lambda c: Drawn(ADAPTERS, {"kind": "token", **pair(c)})),
    (1, lambda _: Drawn("/v1/model", None)),
    (1, lambda c: Drawn(UPDATES, pair(c, layers=[99]))),
    (1, lambda c: Drawn("/v1/activations", {"prompts": [text(c, 3000)]})),
)
"""Weight and request; the last two are refused."""


def recomputed(chance: Chance) -> dict[str, Any]:
    """A completion under recomputed patches; each token must be that of the run with context."""
    asked = pair(chance)
    patch = {"context": asked["context"], "recompute": "new"}
    return {"prompt": asked["query"], "patch": patch, "agreement": True, "temperature": 0}


def mixed(chance: Chance) -> Drawn:
    """One of the mixed requests."""
    (draw,) = chance.choices([draw for _, draw in MIXED], [weight for weight, _ in MIXED])
    return draw(chance)


def long_check(chance: Chance) -> Drawn:
    """A check of all layers on 256 random token ids."""
    *context, query = chance.choices(range(5000), k=256)
    return Drawn(CHECKS, {"context": context, "query": [query]})


LINES = 60
"""Lines of an NDJSON request."""


def lines(chance: Chance) -> Drawn:
    """Questions of two options in turn, and three that are refused."""
    options: list[dict[str, Any]] = [{"layers": [-1]}, {"include": ["next_tokens"]}]
    drawn = [pair(chance, **options[i // 20 % 2]) for i in range(LINES - 3)]
    return Drawn(UPDATES, [*drawn, *(pair(chance, layers=[99]) for _ in range(3))])


async def send(http: httpx.AsyncClient, request: httpx.Request, _: Chance) -> httpx.Response:
    """Send and read at once; after a refusal wait for as long as `Retry-After` says."""
    response = await http.send(request)
    await asyncio.sleep(float(response.headers.get("Retry-After", 0)))
    return response


async def send_again(http: httpx.AsyncClient, request: httpx.Request, _: Chance) -> httpx.Response:
    """Send and read at once; send again after `Retry-After` while the service is busy."""
    end = time.time() + ANSWER_SECONDS
    while True:
        response = await http.send(request)
        if response.status_code not in BUSY or time.time() > end:
            return response
        await asyncio.sleep(float(response.headers.get("Retry-After", 1)))


async def send_slowly(http: httpx.AsyncClient, request: httpx.Request, _: Chance) -> httpx.Response:
    """Send 16 bytes every 0.1 s (a body above 2,000 bytes at once); read 4 KiB every 0.05 s."""
    body = request.content
    piece = 16 if len(body) <= 2000 else len(body)

    async def drops() -> AsyncIterator[bytes]:
        for start in range(0, len(body), piece):
            yield body[start : start + piece]
            await asyncio.sleep(0.1)

    slow = httpx.Request(request.method, request.url, headers=request.headers, content=drops())
    response = await http.send(slow, stream=True)
    content = b""
    async for part in response.aiter_raw(4096):
        content += part
        await asyncio.sleep(0.05)
    return httpx.Response(response.status_code, headers=response.headers, content=content)


async def leave(http: httpx.AsyncClient, request: httpx.Request, chance: Chance) -> None:
    """Close the connection in the middle of the body, or up to 0.1 s after the start."""
    body, half = request.content, chance.random() < 0.5

    async def part() -> AsyncIterator[bytes]:
        yield body[: len(body) // 2] if half else body
        if half:
            await asyncio.sleep(ANSWER_SECONDS)

    cut = httpx.Request(request.method, request.url, headers=request.headers, content=part())
    try:
        async with asyncio.timeout(chance.uniform(0.0, 0.1)):
            await http.send(cut)
    except TimeoutError:
        pass


def paced(seconds: float) -> Callable[[float], float]:
    """Begin one request every so many seconds."""
    return lambda begun: begun + seconds - time.time()


def aligned(_begun: float) -> float:
    """Begin at the same moment as every other client, every 15 s."""
    return BURST_SECONDS - time.time() % BURST_SECONDS


KINDS: Mapping[str, Kind] = {
    "Mixed": Kind(paced(0.7), mixed, send),
    "Burst": Kind(aligned, lambda c: Drawn(CHECKS, pair(c, layers=[-1])), send),
    "Slow": Kind(paced(5.0), mixed, send_slowly),
    "Leaving": Kind(paced(1.0), lambda c: Drawn(CHECKS, pair(c, 60, scope="model")), leave),
    "Lines": Kind(paced(4.0), lines, send),
    "SlowLines": Kind(paced(8.0), lines, send_slowly),
    "LeavingLines": Kind(paced(1.5), lines, leave),
    "LeavingStreams": Kind(
        paced(1.0),
        lambda c: Drawn(COMPLETIONS, {"prompt": text(c, 30), "max_tokens": 400, "stream": True}),
        leave,
    ),
    "Check": Kind(paced(0.0), long_check, send_again),
}


def run_clients(port: int, counts: Mapping[str, int], seconds: float, records: Path) -> None:
    """Run clients in a process of their own, then wait for the requests under way.

    Args:
        port: Port of the service.
        counts: Number of clients by kind.
        seconds: Seconds after which no client begins a request.
        records: File that receives a line for each request.
    """
    command = [sys.executable, "-m", "benchmarks.load.clients", str(port), str(seconds)]
    kinds = [f"{kind}={count}" for kind, count in counts.items()]
    subprocess.run([*command, str(records), *kinds], check=True)


async def _client(http: httpx.AsyncClient, name: str, kind: Kind, end: float, out: TextIO) -> None:
    """Send requests until the end; the same ones in every run."""
    chance, begun, count = random.Random(name), 0.0, 0
    while (start := time.time() + max(0.0, kind.wait(begun))) < end:
        await asyncio.sleep(start - time.time())
        drawn, begun, count = kind.draw(chance), time.time(), count + 1
        record: dict[str, Any] = {"id": f"{name}.{count}", "path": drawn.path, "begun": begun}
        headers = {"X-Request-ID": f"{name}.{count}", "Accept": drawn.accept}
        method = "GET" if drawn.body is None else "POST"
        if isinstance(drawn.body, list):
            content = "".join(json.dumps(line) + "\n" for line in drawn.body)
            headers["Content-Type"] = NDJSON
            request = http.build_request(method, drawn.path, content=content, headers=headers)
        else:
            request = http.build_request(method, drawn.path, json=drawn.body, headers=headers)
        outcome, status, code, fault = "left", 0, "", ""
        try:
            if (response := await kind.send(http, request, chance)) is not None:
                status = response.status_code
                outcome, code = _outcome(response)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            outcome, fault = "lost", f"{type(error).__name__}: {error}"
        record |= {"outcome": outcome, "status": status, "code": code, "fault": fault}
        out.write(json.dumps(record | {"seconds": time.time() - begun}) + "\n")


def _outcome(response: httpx.Response) -> tuple[str, str]:
    """Outcome and problem code of a whole answer."""
    status, media = response.status_code, response.headers["content-type"]
    if status == 200 and media == SAFETENSORS:
        return "answered", ""
    if media == NDJSON:
        return ("answered" if _lines_are_whole(response.content) else "lost"), ""
    if media.startswith(EVENT_STREAM):
        whole = (
            response.content.endswith(b"data: [DONE]\n\n") and b'"error"' not in response.content
        )
        return ("answered" if whole else "lost"), ""
    answer = response.json()
    if status == 200:
        same = all(token["same_token"] for token in answer.get("agreement", ()))
        return ("answered" if answer.get("holds", True) and same else "lost"), ""
    if media == "application/problem+json" and answer["status"] == status:
        return "refused", answer["code"]
    return "lost", ""


def _lines_are_whole(content: bytes) -> bool:
    """Whether each line was answered, or refused with a problem of its own, in order."""
    found = [json.loads(line) for line in content.splitlines()]
    whole = [line["body"].get("status", 200) == line["status"] for line in found]
    refused = [line["status"] == 422 for line in found]
    return (
        [line["index"] for line in found] == list(range(LINES))
        and all(whole)
        and refused == [False] * (LINES - 3) + [True] * 3
    )


async def _main(port: str, seconds: str, records: str, *kinds: str) -> None:
    counts = (kind.split("=") for kind in kinds)
    end = time.time() + float(seconds)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    base = f"http://127.0.0.1:{port}"
    http = httpx.AsyncClient(base_url=base, timeout=ANSWER_SECONDS, limits=limits, trust_env=False)
    with Path(records).open("w") as out:
        async with http, asyncio.TaskGroup() as group:
            for name, count in counts:
                for i in range(int(count)):
                    group.create_task(_client(http, f"{name}-{i + 1}", KINDS[name], end, out))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
