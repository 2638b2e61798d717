"""Runs: what a question asks of the model, and what it gets back.

A run is a row of tokens at positions, and the sites that are read in it. A row sees all earlier
rows of its own run and itself, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

HookPoint = Literal[
    "resid_pre",
    "ln_1_out",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_pre",
    "mlp_act",
    "mlp_out",
    "resid_post",
    "logits",
]
"""The vectors of one block, in the order in which it computes them; then the model's logits."""

STAGE: Mapping[HookPoint, int] = {point: i for i, point in enumerate(get_args(HookPoint))}


class Site(NamedTuple):
    """A hook point of a layer. The logits are at layer `n_layers`, behind the last block."""

    layer: int
    point: HookPoint


@dataclass(frozen=True, eq=False)
class Run:
    """One row of tokens through the model.

    Args:
        tokens: Ids, one a row.
        positions: Their positions; gaps are allowed, the order of the rows is the order of sight.
        reads: The rows that are read at each site, in the order in which they are wanted.
        dtype: What the run is computed in; None is the dtype in which the model is resident.
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    reads: Mapping[Site, Sequence[int]] = field(default_factory=dict)
    dtype: torch.dtype | None = None

    @property
    def depth(self) -> int:
        """The last layer that is needed; `n_layers` for the logits, -1 where nothing is read."""
        return max((site.layer for site in self.reads), default=-1)


Activations = Mapping[Site, Tensor]
"""What a run read: (rows, width) at each site, on the model's device, in the run's dtype."""
