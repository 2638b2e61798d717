"""The machine: what the figures were taken on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

import service


@dataclass(frozen=True)
class Machine:
    """Processor, versions and threads.

    Args:
        when: UTC, ISO 8601.
        processor: Its name, and how many of its cores this process may use.
        load: The system's load average over the last minute, at the start.
        device: Where the models are; a GPU by its name.
        threads: CPU threads of one computation.
        wait_policy: `OMP_WAIT_POLICY`.
        versions: By name.
    """

    when: str
    processor: str
    load: float
    device: str
    threads: int
    wait_policy: str
    versions: Mapping[str, str]

    def __str__(self) -> str:
        named = {**asdict(self), "versions": _listed(self.versions)}
        return "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in named.items())


def describe(device: torch.device) -> Machine:
    """This machine, now."""
    packages = ("torch", "transformers", "numpy", "fastapi", "uvicorn", "orjson")
    cores = len(os.sched_getaffinity(0))
    return Machine(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        processor=f"{_processor()}, {cores} cores",
        load=os.getloadavg()[0],
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        threads=torch.get_num_threads(),
        wait_policy=os.environ.get("OMP_WAIT_POLICY", "not set"),
        versions={
            "deltaw": service.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    )


def _processor() -> str:
    """The name that Linux knows, with the widest vectors: two machines may share a name."""
    facts = dict[str, str]()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    widest = torch.backends.cpu.get_cpu_capability()
    return f"{facts.get('model name', platform.machine())} ({widest})"


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items())
