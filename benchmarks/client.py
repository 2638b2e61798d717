"""The client's own share of a round trip: all layers' factors as safetensors over the loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from benchmarks.agreement import Disagreement
from benchmarks.bench import Bench
from benchmarks.process import serving
from benchmarks.table import Bar, Row
from deltaw_client import DeltawClient, WeightUpdates
from deltaw_client.calls import SAFETENSORS
from deltaw_client.tensor_file import unpack

ROUNDS = 100
TOKENS = 22
OWN = Bar("<=", 5.0)


@dataclass(frozen=True)
class Trip:
    """One call, in seconds.

    Args:
        call: From the method's call to its answer.
        service: Of it in the service, by its `Server-Timing`.
        processor: Of it on the processor in this process.
        reading: Of the same bytes read once more.
    """

    call: float
    service: float
    processor: float
    reading: float


def rows(bench: Bench) -> Iterator[Row]:
    """One row; beside it the same bytes asked for with as little client as there can be, unread."""
    *context, query = bench.ids(TOKENS)
    settings = {"model": bench.checkpoint, "device": bench.device, "threads": bench.threads}
    body = {"context": context, "query": [query]}
    with serving(**settings) as service:
        url = f"http://127.0.0.1:{service.connection.port}"
        with DeltawClient(url) as client:
            answer = client.weight_updates(context, [query])
            agree(bench, answer)
            trips, bare = [], []
            for _ in range(ROUNDS):
                trips.append(_trip(client, context, [query]))
                told = service.ask("POST", "/v1/weight-updates", body, SAFETENSORS)
                bare.append(told.seconds - sum(told.timings.values()))
    yield Row(
        "own",
        f"all {bench.model.n_layers} layers' factors, {bench.name}",
        "client's call − service's own time",
        1000 * median(trip.call - trip.service for trip in trips),
        "ms",
        OWN,
        ROUNDS,
        {
            "call ms": 1000 * median(trip.call for trip in trips),
            "bare http.client − service ms": 1000 * median(bare),
            "processor ms": 1000 * median(trip.processor for trip in trips),
            "reading ms": 1000 * median(trip.reading for trip in trips),
            "answer KiB": len(answer.content) / 1024,
        },
    )


def _trip(client: DeltawClient, context: list[int], query: list[int]) -> Trip:
    start, start_worked = time.perf_counter(), time.process_time()
    answer = client.weight_updates(context, query)
    call, processor = time.perf_counter() - start, time.process_time() - start_worked
    start = time.perf_counter()
    text, tensors = unpack(answer.content)
    WeightUpdates.model_validate_json(text, context=tensors, extra="ignore")
    return Trip(call, sum(answer.server_timing.values()), processor, time.perf_counter() - start)


def agree(bench: Bench, answer: WeightUpdates) -> None:
    """Every layer's factors have arrived: the product of their norms is ‖ΔW‖.

    Raises:
        Disagreement: They have not.
    """
    if [update.layer for update in answer.updates] != list(range(bench.model.n_layers)):
        raise Disagreement("a layer is missing")
    for update in answer.updates:
        if update.factors is None:
            raise Disagreement("the factors are not there")
        norms = [
            float((f.astype(float) ** 2).sum() ** 0.5)
            for f in (update.factors.input, update.factors.output)
        ]
        if abs(norms[0] * norms[1] - update.norm) > 1e-5 * update.norm:
            raise Disagreement(f"layer {update.layer}: the factors' norms are not ‖ΔW‖")
