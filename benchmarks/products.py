"""The products that a question needs, bare: the machine's limit for it.

Only products with weights count; attention's own (scores, and values by weights), norms, the
activation function and everything that moves data are what the engine spends beside them. Each
product has a weight of its own in memory, as in a model, so that none is found in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from service.engine import Model
from service.engine.families import Affine, affine


@dataclass(frozen=True)
class Product:
    """(rows, d_in) times (d_in, d_out)."""

    rows: int
    d_in: int
    d_out: int


def one_layer(model: Model, layer: int, rows: int, read: int) -> Iterator[Product]:
    """What the update of one layer needs: the blocks below it for all rows; in its own, keys and
    values for all, queries and attention's output for the rows that are read; and Δn·W.

    Args:
        model: Whose widths.
        layer: Whose update.
        rows: Rows of both runs together.
        read: Rows that are read, two for each update.
    """
    wide, mlp = model.d_model, model.d_mlp
    for _ in range(layer):
        yield Product(rows, wide, 3 * wide)
        yield Product(rows, wide, wide)
        yield Product(rows, wide, mlp)
        yield Product(rows, mlp, wide)
    yield Product(rows, wide, 2 * wide)
    yield Product(read, wide, wide)
    yield Product(read, wide, wide)
    yield Product(read // 2, wide, mlp)


class Prepared:
    """Products with random matrices, all allocated.

    Args:
        products: In the order in which they are multiplied.
        like: A tensor of the dtype and on the device to multiply in.
        blocks: Whether by matrices as the engine keeps them, or as torch does by default.
    """

    def __init__(self, products: Iterable[Product], like: Tensor, *, blocks: bool) -> None:
        kept = affine if blocks else Affine
        self._products = [
            (
                like.new_empty(product.rows, product.d_in).normal_(),
                kept(
                    like.new_empty(product.d_in, product.d_out).normal_(),
                    like.new_zeros(product.d_out),
                ),
            )
            for product in products
        ]

    def multiply(self) -> None:
        """Multiply them, one after the other."""
        for x, times in self._products:
            times(x)
