"""W10: a generated token behind a long prompt, against `generate` of transformers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from benchmarks import engine
from benchmarks.agreement import Disagreement
from benchmarks.bench import Bench, token_ids
from benchmarks.results import Row, compare
from benchmarks.timing import FEW, Seconds, Sides
from schemas.completions import Recompute

TOKENS = 512
GENERATED = 33


@dataclass
class Clock(BaseStreamer):  # type: ignore[misc]
    """The times at which tokens were generated, and the tokens.

    transformers calls `put` with the prompt and then with each token, on the host.
    """

    tokens: list[int] = field(default_factory=list)
    times: list[Seconds] = field(default_factory=list)

    def note(self, token: int) -> None:
        """Note a token."""
        self.tokens.append(token)
        self.times.append(Seconds(time.perf_counter(), time.process_time()))

    def put(self, value: Tensor) -> None:
        """Note a token of transformers, and skip the prompt."""
        if value.numel() == 1:
            self.note(int(value))

    def end(self) -> None:
        """Nothing follows."""

    @property
    def each(self) -> Seconds:
        """Time of one token, without the first one, before which the prompt is read."""
        first, last, count = self.times[0], self.times[-1], len(self.times) - 1
        return Seconds((last.wall - first.wall) / count, (last.processor - first.processor) / count)


def generation(bench: Bench) -> Iterator[Row]:
    """W10: one token of a greedy completion, plain and under a recomputed patch."""
    if bench.model.n_positions < TOKENS + GENERATED:
        return
    prompt = token_ids(TOKENS, 10)
    runs: dict[str, Callable[[], Clock]] = {
        "engine": partial(_ours, bench, prompt, None),
        "transformers": partial(_theirs, bench, prompt),
        "engine, recomputed": partial(_ours, bench, prompt, "new"),
    }
    tokens = {name: run().tokens for name, run in runs.items()}
    for name, found in tokens.items():
        if found != tokens["engine"] or len(found) != GENERATED:
            raise Disagreement(f"the tokens of {name} differ from those of the engine")
    sides: Sides = {name: partial(_each, run) for name, run in runs.items()}
    case = f"greedy, {GENERATED - 1} tokens behind {TOKENS}"
    ratios = [("engine", "transformers"), ("engine, recomputed", "engine")]
    yield from compare(bench, "W10", case, TOKENS, sides, ratios, FEW)


def _each(run: Callable[[], Clock]) -> Seconds:
    return run().each


def _ours(bench: Bench, prompt: list[int], recompute: Recompute | None) -> Clock:
    """A completion of the prompt. Under a patch, its last token alone is not context."""
    clock = Clock()
    engine.complete(bench.model, prompt, recompute, GENERATED, clock.note)
    return clock


def _theirs(bench: Bench, prompt: list[int]) -> Clock:
    clock, model = Clock(), bench.transformers_model
    ids = torch.tensor([prompt], device=bench.device)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=GENERATED,
        pad_token_id=0,
        streamer=clock,
    )
    return clock
