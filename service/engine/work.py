"""Work: what a question will take, predicted before any of it is done."""

from __future__ import annotations

from dataclasses import dataclass

READING = 32
"""Rows whose products take about as long as reading the weights for a forward of few rows."""


@dataclass(frozen=True)
class Work:
    """What a question asks of the model.

    Args:
        rows: Of all its runs, before any is shared or known.
        layers: Blocks that they go through.
        number_bytes: Of a number in the dtype that it is computed in.
    """

    rows: int = 0
    layers: int = 1
    number_bytes: int = 4

    @property
    def size(self) -> int:
        """Rows × layers × bytes: what is held against a bound."""
        return self.rows * self.layers * self.number_bytes

    @property
    def cost(self) -> int:
        """The same with the reading of the weights: about proportional to the time it takes."""
        return (self.rows + READING) * self.layers * self.number_bytes
