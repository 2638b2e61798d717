"""Rotary position embeddings: queries and keys turned by their positions.

The frequencies are taken from transformers' own module as if they were weights, so that every
static type of rotary embedding is served as transformers computes it. A table holds only the
positions of a pack: whole tables of Llama 3 would take 134 MB.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotation of the first `2·len(frequencies)` entries of each head.

    Args:
        frequencies: Radians per position, float32, on the CPU, (turned / 2).
        scaling: Factor of cosine and sine.
    """

    frequencies: Tensor
    scaling: float

    def turns(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """Cosine and sine at positions (rows), from float32 on the CPU, (2, rows, turned)."""
        angles = positions.float()[:, None] * self.frequencies
        turns = torch.stack([angles.cos(), angles.sin()]) * self.scaling
        return torch.cat([turns, turns], -1).to(dtype)


@dataclass(frozen=True)
class Table:
    """Cosine and sine of some rows, (rows, turned) each."""

    cos: Tensor
    sin: Tensor

    def rows(self, index: Tensor | None) -> Table:
        """The table of some of the rows; None: all."""
        return self if index is None else Table(self.cos[index], self.sin[index])

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate heads (heads, rows, d_head) by the rows' positions."""
        turned, rest = x.tensor_split([self.cos.shape[-1]], -1)
        first, second = turned.chunk(2, -1)
        turned = turned * self.cos + torch.cat([-second, first], -1) * self.sin
        return torch.cat([turned, rest], -1) if rest.shape[-1] else turned
