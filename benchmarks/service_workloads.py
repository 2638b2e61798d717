"""W5, W6, W9 and the client: the service over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

import torch

from benchmarks import engine
from benchmarks.agreement import Update, agree_updates
from benchmarks.bench import Bench, token_ids
from benchmarks.results import Row, compare
from benchmarks.server import Answer, Request, Server, running_server
from benchmarks.timing import Seconds, Sides, alternate, milliseconds
from deltaw_client import DeltawClient

CPU = torch.device("cpu")
REPEATS = 100
PATH = "/v1/weight-updates"
CONTEXT, QUERY = "The capital of Germany is", " Berlin"


def batching(bench: Bench) -> Iterator[Row]:
    """W5: 16 clients at once, against one client in a row and against `batching = off`.

    Every request has a context of its own, no service caches prefixes, and every layer is computed.
    """
    clients, tokens = 16, 22
    requests = [_update_request(tokens, 100 + i, layer=-1) for i in range(2 * clients)]
    settings = {**bench.settings, "prefix_cache_bytes": 0}
    with (
        running_server(**settings) as server,
        running_server(**settings, batching=False) as single,
        ThreadPoolExecutor(clients) as pool,
    ):
        batched, alone = pool.map(server.post, requests), map(server.post, requests)
        for i, (one, other) in enumerate(zip(list(batched), alone, strict=True)):
            agree_updates(f"request {i} in a batch", *map(_update, (one, other)))
        sides: Sides = {
            "in a row": _timed(server, lambda: map(server.post, requests)),
            "at once": _timed(server, lambda: pool.map(server.post, requests)),
            "at once, batching off": _timed(single, lambda: pool.map(single.post, requests)),
        }
        case = f"{clients} clients, last layer, {tokens} tokens"
        ratios = [("in a row", "at once"), ("at once, batching off", "at once")]
        yield from compare(bench, "W5", case, tokens, sides, ratios)


def throughput(bench: Bench) -> Iterator[Row]:
    """W9: pairs a second of 64 clients that each send one request after the other."""
    clients = 64
    with (
        running_server(**bench.settings, prefix_cache_bytes=0) as server,
        ThreadPoolExecutor(clients) as pool,
    ):
        for tokens in (22, 128):
            requests = [_update_request(tokens, 1000 + i, layer=5) for i in range(2 * clients)]
            answers = partial(pool.map, server.post, requests)
            times = alternate({"round": _timed(server, answers)}, CPU, bench.seconds / 2, 3)
            value = 1000 * len(requests) / milliseconds(times)["round"]
            case = f"{clients} clients, layer 5, {tokens} tokens"
            yield Row("W9", case, "pairs a second", value, "1/s", tokens, len(times["round"]))


def overhead(bench: Bench) -> Iterator[Row]:
    """W6: a request's time beside its forward, and the time to serialize twelve layers' factors."""
    model, layer = bench.model, min(5, bench.model.n_layers - 1)
    request = Request(PATH, {"context": CONTEXT, "query": QUERY, "layers": [layer]})
    with running_server(**bench.settings) as server:
        expected = engine.update(model, layer, CONTEXT, QUERY)
        agree_updates("over HTTP", _update(server.post(request)), expected)
        pairs = [(server.post(request), server.get("/livez")) for _ in range(REPEATS)]
    answers = [answer for answer, _ in pairs]
    parts = {"request": [answer.seconds for answer in answers]}
    for part in ("queue", "tokenize", "compute", "serialize"):
        parts[part] = [answer.timings[part] for answer in answers]
    parts["/livez"] = [livez.seconds for _, livez in pairs]
    medians = {f"{part} ms": _milliseconds(seconds) for part, seconds in parts.items()}
    value = _milliseconds(answer.seconds - answer.timings["forward"] for answer in answers)
    case = f"layer {layer}, JSON, {bench.name}"
    yield Row("W6", case, "request − forward", value, "ms", None, REPEATS, medians)
    *context, query = token_ids(22)
    times = alternate(engine.serializers(model, context, query), CPU, min(bench.seconds, 5.0))
    for name, value in milliseconds(times).items():
        figure, rounds = f"serialization, {name}", len(times[name])
        yield Row("W6", "12 layers' factors", figure, value, "ms", None, rounds)


def client_overhead(bench: Bench) -> Iterator[Row]:
    """The Python client's share of a round trip: all layers' factors as safetensors.

    Beside it stands http.client, which receives the same bytes and does not parse them.
    """
    *context, query = token_ids(22)
    request = Request(PATH, {"context": context, "query": [query]})
    calls, bare = list[Seconds](), list[float]()
    with (
        running_server(**bench.settings) as server,
        DeltawClient(f"http://127.0.0.1:{server.port}") as client,
    ):
        for _ in range(REPEATS):
            start, start_processor = time.perf_counter(), time.process_time()
            answer = client.weight_updates(context, [query])
            wall, processor = time.perf_counter() - start, time.process_time() - start_processor
            calls.append(Seconds(wall - sum(answer.server_timing.values()), processor))
            received = server.post(request, "application/vnd.safetensors")
            bare.append(received.seconds - sum(received.timings.values()))
    medians = {
        "http.client − service's own time ms": _milliseconds(bare),
        "answer KiB": len(received.body) / 1024,
    }
    for figure, seconds in (
        ("client's call − service's own time", [call.wall for call in calls]),
        ("client's processor time", [call.processor for call in calls]),
    ):
        case, value = f"all layers' factors, {bench.name}", _milliseconds(seconds)
        yield Row("client", case, figure, value, "ms", None, REPEATS, medians)


def _update_request(tokens: int, seed: int, layer: int) -> Request:
    *context, query = token_ids(tokens, seed)
    return Request(PATH, {"context": context, "query": [query], "layers": [layer]})


def _update(answer: Answer) -> Update:
    """The update of an answer that has one, in JSON."""
    (update,) = answer.json["updates"]
    n = update["mlp_in"]
    cancellation = (n["norm_with_context"] + n["norm_baseline"]) / n["norm_difference"]
    (weight,) = update["weights"]
    one, other = (torch.tensor(factor["data"]) for factor in (update["input"], weight["output"]))
    return Update(one, other, cancellation)


def _timed(server: Server, answers: Callable[[], Iterable[Answer]]) -> Callable[[], Seconds]:
    """A side: wall-clock seconds until the last answer, and processor seconds of the service."""

    def run() -> Seconds:
        start, processor = time.perf_counter(), server.processor
        for _ in answers():
            pass
        return Seconds(time.perf_counter() - start, server.processor - processor)

    return run


def _milliseconds(seconds: Iterable[float]) -> float:
    """The median, in milliseconds."""
    return 1000 * median(seconds)
