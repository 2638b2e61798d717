"""Earlier figures and the bars to reach, for GPT-2 small's shape in float32 (CPU: one thread)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Side = Literal[">=", "<="]
Figures = Mapping[int | None, tuple[float | None, float | None]]
"""Earlier figure and bar by the number of tokens; None stands for a figure of one size."""


@dataclass(frozen=True)
class Bar:
    """The bar and the earlier value of a figure, in the figure's unit.

    Args:
        side: Whether the figure must be at least or at most the limit.
        earlier: Figure of an earlier run on a machine of the same kind.
        limit: The bar to reach.
    """

    side: Side
    earlier: float | None
    limit: float | None

    def reached(self, value: float) -> bool | None:
        """Whether a new figure reaches the bar; None without a bar."""
        if self.limit is None:
            return None
        return value >= self.limit if self.side == ">=" else value <= self.limit


# A bar on what must not get worse leaves some room for noise beside the earlier figure.
PEERS_CPU: Figures = {22: (1.9, 1.25), 128: (1.34, 1.05), 512: (1.21, 1.1), 1024: (1.21, 1.1)}
PEERS_CUDA: Figures = {22: (1.3, 7), 128: (1.3, 4), 512: (1.2, 2.5), 1024: (1.0, 1.5)}
TABLE: tuple[tuple[str, str, str, Side, Figures], ...] = (
    ("cpu", "W1", "seed script / engine", ">=",
     {22: (5.9, 3.5), 128: (4.4, 3.5), 512: (4.2, 3.5), 1024: (4.0, 3.5)}),
    ("cpu", "W1", "hook, early stop / engine", ">=", PEERS_CPU),
    ("cpu", "W1", "nnsight, early stop / engine", ">=", PEERS_CPU),
    ("cpu", "W1", "TransformerLens, early stop / engine", ">=", PEERS_CPU),
    ("cpu", "W1", "needed products / engine", ">=",
     {22: (1.23, None), 128: (0.98, 0.85), 512: (0.89, 0.8), 1024: (0.83, 0.8)}),
    ("cpu", "W2", "engine, materialized / plain forward", "<=", {128: (0.64, 0.7)}),
    ("cpu", "W2", "engine, factored / plain forward", "<=", {128: (0.61, 0.7)}),
    ("cpu", "W2", "norms / plain forward", "<=", {128: (0.54, 0.7)}),
    ("cpu", "W2", "seed script / engine, materialized", ">=", {128: (21.7, 14)}),
    ("cpu", "W3", "known / needed products", "<=",
     {128: (0.89, 1.5), 512: (1.08, 1.65), 1000: (1.25, 1.75)}),
    ("cpu", "W3", "cold / known", ">=",
     {128: (7.0, None), 512: (23.4, None), 1000: (42.9, None)}),
    ("cpu", "W4", "separate runs / one question", ">=", {128: (25.3, 30)}),
    ("cpu", "W5", "in a row / at once", ">=", {22: (1.23, 1.5)}),
    ("cpu", "W6", "request − forward", "<=", {None: (3.4, 2)}),
    ("cpu", "W6", "serialization, JSON", "<=", {None: (1.48, 10)}),
    ("cpu", "W6", "serialization, safetensors", "<=", {None: (0.58, 1)}),
    ("cpu", "W7", "/livez p99", "<=", {None: (2.3, 20)}),
    ("cpu", "W7", "/metrics slowest", "<=", {None: (5.6, 100)}),
    ("cpu", "W8", "start to ready", "<=", {None: (4.2, 3.5)}),
    ("cpu", "W8", "resident − weights, when ready", "<=", {None: (410, 350)}),
    ("cpu", "W8", "resident − weights, after 20 requests", "<=", {None: (424, 350)}),
    ("cpu", "W8", "peak resident − weights", "<=", {None: (815, 600)}),
    ("cpu", "W9", "pairs a second, 64 clients, factors", ">=", {22: (60, 72)}),
    ("cpu", "W9", "64 clients / lines", ">=", {22: (None, 1.3), 128: (None, 1.3)}),
    ("cpu", "W10", "engine / transformers", "<=", {512: (None, 1.2)}),
    ("cpu", "W12", "HTTP, default settings / one pack", "<=", {1000: (10, 1.3)}),
    ("cpu", "W12", "1000 tokens / 500 tokens", "<=", {1000: (5.3, 4)}),
    ("cpu", "client", "client's call − service's own time", "<=", {None: (4.18, 5)}),
    ("cpu", "client", "client's processor time", "<=", {None: (2.04, 5)}),
    ("cuda", "W1", "seed script / engine", ">=",
     {22: (2.3, 15), 128: (2.5, 8.5), 512: (2.1, 5), 1024: (1.7, 3)}),
    ("cuda", "W1", "hook, early stop / engine", ">=", PEERS_CUDA),
    ("cuda", "W1", "nnsight, early stop / engine", ">=", PEERS_CUDA),
    ("cuda", "W1", "TransformerLens, early stop / engine", ">=", PEERS_CUDA),
    ("cuda", "W1", "needed products / engine", ">=",
     {22: (0.08, 0.55), 128: (0.16, 0.55), 512: (0.23, 0.55), 1024: (0.28, 0.5)}),
    ("cuda", "W2", "norms / plain forward", "<=", {128: (None, 0.5)}),
    ("cuda", "W2", "engine, materialized / plain forward", "<=", {128: (5.6, None)}),
    ("cuda", "W3", "cold / known", ">=", {128: (None, 1), 512: (None, 1), 1000: (None, 1)}),
    ("cuda", "W4", "separate runs / one question", ">=", {128: (26.8, None)}),
    ("cuda", "W4", "one question / plain forward", "<=", {128: (None, 2)}),
    ("cuda", "W6", "request − forward", "<=", {None: (4.0, 2)}),
    ("cuda", "W7", "/livez p99", "<=", {None: (None, 20)}),
    ("cuda", "W9", "pairs a second, 64 clients, factors", ">=",
     {22: (176, 600), 128: (None, 450)}),
    ("cuda", "W9", "pairs a second, lines", ">=", {22: (None, 3000), 128: (None, 1500)}),
    ("cuda", "W10", "engine / transformers", "<=", {512: (None, 1)}),
    ("cuda", "W12", "HTTP, default settings / one pack", "<=", {1000: (None, 1.3)}),
    ("cuda", "W12", "1000 tokens / 500 tokens", "<=", {1000: (None, 4)}),
)  # fmt: skip


def find_bar(device: str, workload: str, figure: str, tokens: int | None) -> Bar | None:
    """The bar of a figure on a type of device (`cpu`, `cuda`)."""
    for *key, side, figures in TABLE:
        if key == [device, workload, figure] and tokens in figures:
            return Bar(side, *figures[tokens])
    return None
