"""A peer's environment: a venv in the cache, made from pins, made again when they change."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch=="
MADE = "made-from.txt"
SECONDS = 900.0


class CannotInstall(Exception):
    """A peer's environment cannot be made here."""


@dataclass(frozen=True)
class Peer:
    """A program that computes the same update.

    Args:
        name: As rows name it.
        module: The side in its process; its pins are beside it, `.txt` for `_side.py`.
        idioms: The ways to ask it; the best one first, then the one that its documentation shows.
    """

    name: str
    module: str
    idioms: Sequence[str]

    @property
    def pins(self) -> Path:
        """Every package of its environment, at one version."""
        return Path(__file__).with_name(f"{self.module.removesuffix('_side')}.txt")


NNSIGHT = Peer("nnsight", "nnsight_side", ("early stop", "documented"))
TRANSFORMER_LENS = Peer("TransformerLens", "transformer_lens_side", ("early stop", "documented"))


def python_of(peer: Peer, cache: Path) -> Path:
    """The interpreter of a peer's environment, which is made where it is not there yet.

    Torch comes first, so that the kind of build that this machine gets does not depend on a peer.

    Raises:
        CannotInstall: It cannot be made.
    """
    folder = (cache / "peers" / peer.module.removesuffix("_side")).absolute()
    pins = peer.pins.read_text()
    python = folder / "bin" / "python"
    made = folder / MADE
    if made.is_file() and made.read_text() == pins:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    torch = next(line for line in pins.splitlines() if line.startswith(TORCH))
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    print(f"benchmarks: making {peer.name}'s environment in {folder}", file=sys.stderr)
    _run(peer, [sys.executable, "-m", "venv", str(folder)])
    _run(peer, [*install, torch])
    _run(peer, [*install, "--requirement", str(peer.pins)])
    made.write_text(pins)
    return python


def _run(peer: Peer, command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.CalledProcessError as error:
        told = [line for line in error.stderr.splitlines() if line.strip()]
        last = told[-1] if told else f"exit code {error.returncode}"
        raise CannotInstall(f"{peer.name} cannot be installed: {last}") from error
    except (subprocess.TimeoutExpired, OSError) as error:
        raise CannotInstall(f"{peer.name} cannot be installed: {error}") from error
