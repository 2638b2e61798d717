"""W5, W6, W9 and the client: the service over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

import torch

from benchmarks import engine
from benchmarks.agreement import Update, agree, agree_updates
from benchmarks.bench import Bench, token_ids
from benchmarks.results import Row, compare
from benchmarks.server import Answer, Request, running_server, timed
from benchmarks.timing import FEW, Seconds, Sides, alternate, milliseconds, ratio
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
            "in a row": timed(server, lambda: map(server.post, requests)),
            "at once": timed(server, lambda: pool.map(server.post, requests)),
            "at once, batching off": timed(single, lambda: pool.map(single.post, requests)),
        }
        case = f"{clients} clients, last layer, {tokens} tokens"
        ratios = [("in a row", "at once"), ("at once, batching off", "at once")]
        yield from compare(bench, "W5", case, tokens, sides, ratios)


def throughput(bench: Bench, tokens: int) -> Iterator[Row]:
    """W9: pairs a second, one layer: of 64 clients, and as the lines of one NDJSON request.

    The clients send one request after the other: with factors, and with norms alone as the lines.
    """
    clients, layer = 64, min(5, bench.model.n_layers - 1)
    # A GPU would answer fewer lines before the client has read the first answers.
    count = clients * (2 if bench.device.type == "cpu" else 16)
    factors = [_update_request(tokens, 1000 + i, layer) for i in range(count)]
    norms = [Request(PATH, {**request.body, "include": []}) for request in factors]
    bodies = [request.body for request in norms]
    with (
        running_server(**bench.settings, prefix_cache_bytes=0) as server,
        ThreadPoolExecutor(clients) as pool,
    ):
        for line, answer in zip(
            server.post_lines(PATH, bodies[:clients]),
            pool.map(server.post, factors[:clients]),
            strict=True,
        ):
            norm = torch.tensor(line["updates"][0]["norm"])
            update = _update(answer)
            agree("‖ΔW‖ of a line", norm, update.norm, update.cancellation)
        sides: Sides = {
            "64 clients, factors": timed(server, partial(pool.map, server.post, factors)),
            "64 clients": timed(server, partial(pool.map, server.post, norms)),
            "lines": timed(server, partial(server.post_lines, PATH, bodies)),
        }
        times = alternate(sides, CPU, bench.seconds, FEW)
    case, rounds = f"layer {layer}, {tokens} tokens", len(times["lines"])
    for side, median_ms in milliseconds(times).items():
        value = 1000 * count / median_ms
        yield Row("W9", case, f"pairs a second, {side}", value, "1/s", tokens, rounds)
    value = ratio(times, "64 clients", "lines", "wall")
    medians = {"ratio of processor times": ratio(times, "64 clients", "lines", "processor")}
    yield Row("W9", case, "64 clients / lines", value, "times", tokens, rounds, medians)


def overhead(bench: Bench) -> Iterator[Row]:
    """W6: a request's time beside its forward."""
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


def serialization(bench: Bench) -> Iterator[Row]:
    """W6: the time to serialize the factors of twelve layers."""
    *context, query = token_ids(22)
    times = alternate(engine.serializers(bench.model, context, query), CPU, min(bench.seconds, 5.0))
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


def _milliseconds(seconds: Iterable[float]) -> float:
    """The median, in milliseconds."""
    return 1000 * median(seconds)
