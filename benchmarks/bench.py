"""The set-up that workloads share: checkpoint, models, tokens and measuring time."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks import engine
from tests.checkpoints import save_tiny

SMALL: Mapping[str, Any] = {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257}
VOCABULARY = 5000
"""Token ids are drawn below this; every checkpoint that is measured has more."""


@dataclass(frozen=True)
class Bench:
    """One call of the benchmark.

    Args:
        chosen: Checkpoint to measure: a folder, a hub id or `bundled`. None takes a random GPT-2
            of GPT-2 small's shape.
        cache: Folder of the random checkpoint and of the peers' environments.
        device: Device of the models.
        seconds: Seconds for each comparison.
        threads: CPU threads.
        peers: Whether to measure nnsight and TransformerLens.
    """

    chosen: str | None
    cache: Path
    device: torch.device
    seconds: float
    threads: int
    peers: bool = True

    @cached_property
    def checkpoint(self) -> str:
        """The checkpoint as the service's setting `model` takes it; the random one is made once.

        Random weights cost what trained weights cost, and need no download.
        """
        if self.chosen is not None:
            return self.chosen
        folder = self.cache / "gpt2-small-shaped"
        if not (folder / "tokenizer.json").exists():
            disable_progress_bar()
            save_tiny(folder, seed=20251216, n_positions=1024, **SMALL)
        return str(folder)

    @property
    def name(self) -> str:
        """Name of the checkpoint in a row of the table."""
        return Path(self.checkpoint).name

    @property
    def folder(self) -> Path:
        """Folder of the checkpoint."""
        return engine.BUNDLED if self.checkpoint == "bundled" else Path(self.checkpoint)

    @cached_property
    def model(self) -> engine.Model:
        """The resident model, in float32."""
        return engine.load_model(self.checkpoint, self.device)

    @cached_property
    def transformers_model(self) -> Any:
        """The same weights in transformers, loaded as the seed script loads them."""
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        return model.eval().to(self.device)

    @property
    def settings(self) -> Mapping[str, object]:
        """Settings of a service on this checkpoint; its deadline outlasts a busy machine."""
        return {
            "model": self.checkpoint,
            "device": self.device,
            "threads": self.threads,
            "deadline_seconds": 600,
        }


def token_ids(count: int, seed: int = 7) -> list[int]:
    """Random token ids, equal for an equal seed."""
    return random.Random(seed).choices(range(VOCABULARY), k=count)
