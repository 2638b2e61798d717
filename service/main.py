"""The composition root: settings to application."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import asynccontextmanager
from functools import partial

from fastapi import Depends, FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware

from schemas.affinity import CONTEXT_HEADER
from schemas.problems import PROBLEMS
from service import __version__
from service.adapters.store import Store
from service.analysis.self_check import self_check
from service.api import (
    adapters,
    analyses,
    completions,
    model,
    models,
    openapi,
    pages,
    probes,
    problems,
    tokenize,
)
from service.api.keys import require_key
from service.api.request_log import RequestLog
from service.api.routing import Routing
from service.api.state import State
from service.engine import READ_BACKS, Engine, Model, drive, load
from service.settings import Settings, read_settings
from service.telemetry import Metrics
from service.tracing import Tracing

DESCRIPTION = """Express what a context does to a language model as an update of its weights.

A transformer block that runs a query with its context gives the same output as one that runs the
query without it, after a rank-1 update ΔW of the MLP's first weight and a shift Δh of the block's
output. Every number says what it is relative to: its baseline, its stream and its dtype.

On a CPU, with the same number of threads, `batching` off and `prefix_cache_bytes` 0, the same
request gives the same bits, alone or beside other clients. Otherwise two answers agree to float32
rounding: a captured vector to 5e-6, relative; a quantity formed from a difference to that times
(‖n_C‖ + ‖n‖)/‖Δn‖; numbers that are rounding errors share only their gate.

Sources:

- the theorem: Dherin et al., *Learning without training*
  ([arXiv 2507.16003](https://arxiv.org/abs/2507.16003));
- residual stream, layer norm, any block, all positions: Innocenti & Achour
  ([arXiv 2512.11255](https://arxiv.org/abs/2512.11255));
- the sequential patch of all layers: Goldwaser et al.
  ([arXiv 2511.17864](https://arxiv.org/abs/2511.17864));
- static patches for many queries: Mazzawi et al.
  ([arXiv 2510.08734](https://arxiv.org/abs/2510.08734)).
"""

UNTRACED: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
"""FastAPI's own telemetry is off: it would export paths, query strings and exception messages."""
WORKERS = 8
"""Threads for work off the event loop: to parse, to plan, to serialize."""


def create_app(settings: Settings | None = None, tracing: Tracing | None = None) -> FastAPI:
    """Build the application. Its lifespan starts the engine, whose thread loads the model.

    Args:
        settings: Settings of the service; None reads them from the environment.
        tracing: Receives the spans of requests; None exports them if the environment names a
            collector.
    """
    chosen = settings or read_settings()
    traces = tracing or Tracing()
    metrics = Metrics()
    for code in PROBLEMS:
        # Prometheus sees the first increase only of a series that already exists.
        metrics.rejected.labels(code)
    metrics.count(
        "host_synchronisations",
        "How often the host waited for the device to read results back.",
        lambda: READ_BACKS.total,
    )
    engine = Engine(
        partial(
            load,
            chosen.model,
            revision=chosen.revision,
            device=chosen.device,
            dtype=chosen.dtype,
        ),
        lambda loaded: _is_sound(loaded, state, traces),
        queue_size=chosen.queue_size,
        row_budget=chosen.row_budget,
        batching=chosen.batching,
        prefix_cache_bytes=chosen.prefix_cache_bytes,
        graph_memory_bytes=chosen.graph_memory_bytes,
        threads=chosen.threads,
        observe=metrics.observe_forward,
    )
    metrics.count("graph_captures", "CUDA graphs captured.", lambda: engine.graph_captures)
    store = Store(chosen.adapters_folder, chosen.adapter_bytes)
    state = State(chosen, engine, metrics, store, chosen.keys)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(_started_workers())
        engine.start()
        await asyncio.to_thread(traces.start)
        await asyncio.to_thread(store.remove_leftovers)
        yield
        await asyncio.to_thread(engine.close)
        await asyncio.to_thread(traces.close)

    app = FastAPI(
        title="deltaw",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=UNTRACED,
    )
    app.state.deltaw = state
    locked = [Depends(require_key)]
    for resource in (analyses, completions, models, tokenize, model):
        app.include_router(resource.router, dependencies=locked, tags=["analysis"])
    app.include_router(adapters.router, dependencies=locked, tags=["adapters"])
    app.include_router(probes.router, tags=["operation"])
    app.include_router(pages.router, tags=["operation"])
    pages.serve_files(app)
    openapi.describe(app, locked=bool(state.keys))
    problems.install(app)
    if chosen.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(chosen.cors_origins),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "X-Request-ID",
                CONTEXT_HEADER,
                "traceparent",
                "tracestate",
            ],
            expose_headers=["X-Request-ID", "Server-Timing", "Retry-After"],
        )
    app.add_middleware(Routing, hosts=chosen.hosts, root_path=chosen.root_path)
    app.add_middleware(RequestLog, metrics=metrics, tracing=traces)
    return app


def _started_workers() -> ThreadPoolExecutor:
    """The threads for work off the event loop, all started.

    `Thread.start` waits for the new thread, and waits forever if memory runs out before it is up.
    On the event loop this would stop the service, so no thread starts while requests arrive.
    """
    workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="worker")
    together = threading.Barrier(WORKERS)
    wait([workers.submit(together.wait) for _ in range(WORKERS)])
    return workers


def _is_sound(loaded: Model, state: State, tracing: Tracing) -> bool:
    """Run the self-check, record its outcome, and return whether it holds."""
    found = drive(loaded, self_check(loaded))
    state.self_check = found
    tracing.model = loaded.id
    if found.worst_relative_error is not None:
        state.metrics.equivalence_error.observe(found.worst_relative_error)
    state.metrics.equivalence_failures.inc(found.verdict == "fails")
    state.metrics.build_info.labels(
        __version__,
        loaded.id,
        loaded.revision or "",
        str(loaded.device),
        str(loaded.dtype).removeprefix("torch."),
    ).set(1)
    return found.verdict == "holds"
