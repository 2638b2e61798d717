"""Probes and metrics of all replicas as one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from starlette.types import Scope

from service.fleet.ids import Head, own_answer
from service.fleet.targets import Target, no_replica

PROBE_SECONDS = 5.0
"""Seconds for a replica to answer a probe."""
Whole = tuple[str, Head, bytes]
"""Name of a replica, and the head and the body of its answer."""


async def _broadcast(handle: Any, scope: Scope) -> list[asyncio.Task[Whole]]:
    """Ask all running replicas; one task for each."""
    try:
        # The public method waits for the slowest replica, or loses the answers of all.
        asked = await handle.broadcast("whole_answer", scope)._fetch_replica_results_async()
    except DeploymentUnavailableError:
        return []
    return [asyncio.ensure_future(one.get_async()) for one in asked]


async def ready(target: Target, scope: Scope) -> AsyncIterator[Any]:
    """The first answer of a replica that is ready, or else any answer.

    A busy replica answers no probe before a request of its own ends. Ray Serve checks the health of
    all running replicas by another way, so the front answers for replicas that are only late.

    Raises:
        ProblemError: No replica is running.
    """
    asked = await _broadcast(target.handle, scope)
    found: list[Whole] = []
    try:
        for answer in asyncio.as_completed(asked, timeout=PROBE_SECONDS):
            try:
                found.append(await answer)
            except TimeoutError:
                found.append(("", *own_answer(scope, b'{"status":"ready"}')))
                break
            except Exception:
                continue
            if found[-1][1][0] == 200:
                break
    finally:
        for one in asked:
            one.cancel()
    if not found:
        raise no_replica()
    yield found[-1][1:]


async def metrics(targets: Mapping[str, Target], scope: Scope) -> AsyncIterator[Any]:
    """The metrics of all replicas of all models that answer in time, or the refusal of one.

    Raises:
        ProblemError: No replica answers.
    """
    asked = {
        task: name
        for name, target in targets.items()
        for task in await _broadcast(target.handle, scope)
    }
    if asked:
        await asyncio.wait(asked, timeout=PROBE_SECONDS)
    texts = []
    head: Any = None
    for task, name in asked.items():
        if not task.done() or task.exception() is not None:
            task.cancel()
            continue
        replica, head, body = task.result()
        if head[0] != 200:
            yield head, body
            return
        texts.append(({"deployment": name, "replica": replica}, body.decode()))
    if head is None:
        raise no_replica()
    merged = await asyncio.to_thread(merge, texts)
    headers = [(name, value) for name, value in head[1] if name != b"content-length"]
    yield (200, [*headers, (b"content-length", str(len(merged)).encode())]), merged


def merge(texts: Iterable[tuple[Mapping[str, str], str]]) -> bytes:
    """Merge metrics of several replicas, with further labels on each sample.

    The front also serves requests, so this adds the labels to the lines as they are: parsing them
    would take 2 s for 64 replicas.

    Args:
        texts: Pairs of labels, whose values need no escapes, and of a text in Prometheus' format.
    """
    families: dict[str, list[str]] = {}
    for labels, text in texts:
        added = ",".join(f'{name}="{value}"' for name, value in labels.items())
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                # Each family appears once, as the format demands.
                lines = families.setdefault(name, [])
                about = not lines
            if line.startswith("#"):
                if about:
                    lines.append(line)
                continue
            name, brace, rest = line.partition("{")
            if brace:
                lines.append(f"{name}{{{added},{rest}")
            else:
                name, _, value = line.partition(" ")
                lines.append(f"{name}{{{added}}} {value}")
    return "".join(f"{line}\n" for lines in families.values() for line in lines).encode()
