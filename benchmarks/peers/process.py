"""A peer's process, from this end of the line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import Bench
from benchmarks.peers.environment import (
    NNSIGHT,
    TRANSFORMER_LENS,
    CannotInstall,
    Peer,
    python_of,
)
from benchmarks.seed import SeedUpdate
from benchmarks.timing import Taken

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Beside:
    """A peer that has loaded the weights and waits.

    Args:
        peer: Which.
        process: Its process.
    """

    peer: Peer
    process: subprocess.Popen[str]

    def update(self, idiom: str, layer: int, context: Sequence[int], query: int) -> Taken:
        """Compute the update of one layer; what it took, as the peer's own clock has it."""
        told = self._ask(idiom, layer, context, query, give=False)
        return Taken(told["seconds"], told["processor"])

    def given(self, idiom: str, layer: int, context: Sequence[int], query: int) -> SeedUpdate:
        """The numbers of the same update, in the seed script's form; its matrix stays empty."""
        told = self._ask(idiom, layer, context, query, give=True)
        a_context, a, output = (torch.tensor(told[name]) for name in ("a_context", "a", "output"))
        return SeedUpdate(a_context, a, output, torch.empty(0))

    def _ask(
        self, idiom: str, layer: int, context: Sequence[int], query: int, *, give: bool
    ) -> Mapping[str, Any]:
        asked = {"idiom": idiom, "layer": layer, "context": list(context), "query": query}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked | {"give": give}) + "\n")
        self.process.stdin.flush()
        return read_line(self.peer, self.process)


def read_line(peer: Peer, process: subprocess.Popen[str]) -> Mapping[str, Any]:
    """The next answer.

    Raises:
        RuntimeError: There is none: the process ended.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{peer.name}'s process ended with exit code {process.wait()}")
    told: Mapping[str, Any] = json.loads(line)
    return told


@contextmanager
def beside(bench: Bench) -> Iterator[list[Beside]]:
    """The peers that are to be measured, started and ready; those that cannot be had are named."""
    with ExitStack() as stack:
        running: list[Beside] = []
        for peer in (NNSIGHT, TRANSFORMER_LENS) if bench.peers else ():
            try:
                running.append(stack.enter_context(_started(peer, bench)))
            except (CannotInstall, RuntimeError) as error:
                print(f"benchmarks: without {peer.name}: {error}", file=sys.stderr)
        yield running


@contextmanager
def _started(peer: Peer, bench: Bench) -> Iterator[Beside]:
    python = python_of(peer, bench.cache)
    arguments = [str(Path(bench.folder).absolute()), str(bench.device), str(bench.threads)]
    log = bench.cache / "peers" / f"{peer.module}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.peers.{peer.module}", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        try:
            read_line(peer, process)
        except RuntimeError as error:
            raise RuntimeError(f"{error}, see {log}") from error
        yield Beside(peer, process)
    finally:
        process.terminate()
        process.wait()
