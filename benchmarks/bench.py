"""What the workloads share: the model under test, the peer's copy of it, how long to measure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel

import service.checkpoints
from benchmarks.checkpoint import SMALL, random_checkpoint
from service.engine import Model, load

IDS_SEED = 7


@dataclass(frozen=True)
class Bench:
    """One call of the benchmark.

    Args:
        chosen: The checkpoint that was asked for: a folder, a hub id or `bundled`; None for a
            random GPT-2 of the small one's shape.
        cache: Where random checkpoints are kept.
        device: Where the models are.
        seconds: Of one comparison.
        threads: CPU threads.
        peers: Whether nnsight and TransformerLens are measured too.
    """

    chosen: str | None
    cache: Path
    device: torch.device
    seconds: float
    threads: int
    peers: bool = True

    @cached_property
    def checkpoint(self) -> str:
        """What the service is told to load."""
        return self.chosen or str(random_checkpoint(SMALL, self.cache))

    @property
    def name(self) -> str:
        """The checkpoint, as a row of the table names it."""
        return Path(self.checkpoint).name

    @cached_property
    def model(self) -> Model:
        """Resident as the service has it, in float32."""
        return load(self.checkpoint, revision=None, device=str(self.device), dtype="float32")

    @property
    def folder(self) -> str:
        """The checkpoint, for a library that does not know what `bundled` is."""
        if self.checkpoint == "bundled":
            return str(Path(service.checkpoints.__path__[0]) / "bundled")
        return self.checkpoint

    @cached_property
    def peer(self) -> Any:
        """The same weights as transformers has them, loaded as the seed script does."""
        model = GPT2LMHeadModel.from_pretrained(self.folder, dtype=torch.float32)
        return model.eval().to(self.device)

    def ids(self, count: int, seed: int = IDS_SEED) -> list[int]:
        """Random ids, the same in every call with the same seed."""
        generator = torch.Generator().manual_seed(seed)
        drawn: list[int] = torch.randint(
            self.model.vocab_size, (count,), generator=generator
        ).tolist()
        return drawn
