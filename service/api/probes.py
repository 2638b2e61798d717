"""Probes and metrics: liveness, readiness, and Prometheus counters."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from schemas.common import Answer
from service.api.keys import require_key
from service.api.openapi import answers
from service.api.state import Found
from service.errors import Draining, SelfCheckFailed

router = APIRouter()


@dataclass(frozen=True)
class Live(Answer):
    """The process is alive."""

    status: Literal["live"] = "live"


@dataclass(frozen=True)
class Ready(Answer):
    """The model is loaded, its self-check holds, and the service accepts work."""

    status: Literal["ready"] = "ready"


@router.get("/livez", responses=answers(Live, tensors=False, problems=()))
async def livez() -> Live:
    """Report that the process is alive. Never touches the model."""
    return Live()


NOT_READY = answers(Ready, tensors=False, problems=("loading", "self_check_failed", "draining"))


@router.get("/readyz", responses=NOT_READY)
@router.get("/health", responses=NOT_READY)
async def readyz(state: Found) -> Ready:
    """Report whether the service accepts work: the model is loaded and its self-check holds."""
    engine = state.engine
    if engine.draining and engine.fatal is None:
        raise Draining("The service is shutting down.", retry_after=5.0)
    try:
        _ = engine.model
    except SelfCheckFailed as failed:
        if engine.fatal is not None:
            raise
        raise SelfCheckFailed(state.unsound, retry_after=failed.retry_after) from failed
    return Ready()


METRICS: dict[int | str, dict[str, Any]] = {
    **answers(None, tensors=False, problems=("missing_key", "wrong_key")),
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
}


@router.get("/metrics", response_model=None, responses=METRICS, dependencies=[Depends(require_key)])
async def metrics(state: Found) -> Response:
    """Serve the metrics in Prometheus' text format."""
    state.metrics.queue_depth.set(state.engine.waiting)
    if (prefixes := state.engine.prefixes) is not None:
        state.metrics.prefix_cache_hits.set(prefixes.hits)
        state.metrics.prefix_cache_misses.set(prefixes.misses)
        state.metrics.prefix_cache_bytes.set(prefixes.bytes)
    for kind, held in state.engine.memory_bytes.items():
        state.metrics.device_memory.labels(kind).set(held)
    adapters = state.adapters
    records, held = await asyncio.to_thread(lambda: (adapters.records(), adapters.used_bytes))
    state.metrics.adapters.set(len(records))
    state.metrics.adapter_bytes.set(held)
    return Response(generate_latest(state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
