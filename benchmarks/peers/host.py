"""The benchmark's end of a peer's process, and the environments that the peers run in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.agreement import Update
from benchmarks.bench import Bench
from benchmarks.timing import Seconds

ROOT = Path(__file__).parents[2]
PINS = {"nnsight": "nnsight==0.8.1", "TransformerLens": "transformer-lens==4.3.0"}
IDIOMS = ("early stop", "documented")
INSTALL_SECONDS = 900.0


@dataclass(frozen=True)
class Peer:
    """A peer that has loaded the weights.

    Args:
        name: Name in rows of the table.
        process: Its process.
    """

    name: str
    process: subprocess.Popen[str]

    def time(self, idiom: str, layer: int, context: Sequence[int], query: int) -> Seconds:
        """Compute one layer's update; its duration by the peer's own clock."""
        answer = self._ask(idiom, layer, context, query)
        return Seconds(answer["seconds"], answer["processor"])

    def update(self, idiom: str, layer: int, context: Sequence[int], query: int) -> Update:
        """Compute one layer's update and return it."""
        answer = self._ask(idiom, layer, context, query)
        names = ("a_context", "a", "output")
        return Update.from_activations(*(torch.tensor(answer[name]) for name in names))

    def _ask(self, idiom: str, layer: int, context: Sequence[int], query: int) -> Mapping[str, Any]:
        question = {"idiom": idiom, "layer": layer, "context": context, "query": query}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> Mapping[str, Any]:
        """The next line from the process.

        Raises:
            RuntimeError: The process has ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}'s process ended with {self.process.wait()}")
        answer: Mapping[str, Any] = json.loads(line)
        return answer


@contextmanager
def running_peers(bench: Bench) -> Iterator[list[Peer]]:
    """Start the peers; a peer that cannot be installed or started is reported and left out."""
    with ExitStack() as stack:
        peers: list[Peer] = []
        for name in PINS if bench.peers else ():
            try:
                peers.append(stack.enter_context(_running(name, bench)))
            except (subprocess.SubprocessError, OSError, RuntimeError) as error:
                told = getattr(error, "stderr", "") or ""
                print(f"benchmarks: without {name}: {error} {told[-500:]}", file=sys.stderr)
                print(f"benchmarks: its log is {bench.cache}/peers/{name}.log", file=sys.stderr)
        yield peers


@contextmanager
def _running(name: str, bench: Bench) -> Iterator[Peer]:
    folder = bench.cache / "peers" / name
    python = _python(name, folder.absolute())
    options = [name, str(bench.folder.absolute()), str(bench.device), str(bench.threads)]
    with folder.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            [python, "-m", "benchmarks.peers.side", *options],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        peer = Peer(name, process)
        peer.read()
        yield peer
    finally:
        process.terminate()
        process.wait()


def _python(name: str, folder: Path) -> str:
    """The interpreter of a peer's environment, which is made again when its versions change.

    Packages that the service uses as well have the service's versions.
    """
    python, made_from = str(folder / "bin" / "python"), folder / "made-from.txt"
    lock = ROOT / "requirements.lock"
    versions = f"{PINS[name]}\n{lock.read_text()}"
    if not (made_from.is_file() and made_from.read_text() == versions):
        shutil.rmtree(folder, ignore_errors=True)
        print(f"benchmarks: making {name}'s environment in {folder}", file=sys.stderr)
        install = [python, "-m", "pip", "install", "--quiet", PINS[name], "-c", str(lock)]
        run = partial(subprocess.run, check=True, capture_output=True, text=True)
        for command in ([sys.executable, "-m", "venv", str(folder)], install):
            run(command, timeout=INSTALL_SECONDS)
        made_from.write_text(versions)
    return python
