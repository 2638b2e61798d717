"""Layers: the norms and the products of a block.

Matrices stay as they are in the checkpoint's modules, except in float32 on a processor with AVX:
oneDNN multiplies up to twice as fast by matrices in its packed layout, so they are kept packed.
Other tensors are copies, because a view would keep the whole file in memory. Resident tensors are
never written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    and all(hasattr(torch.ops.mkldnn, op) for op in ("_linear_pointwise", "_reorder_linear_weight"))
)
"""Whether torch has oneDNN's packed products for this processor, as its compiler uses them."""
ROW_STEPS = ((64, 4), (256, 8), (math.inf, 16))
"""(maximum rows, step): row counts are padded to these steps, because oneDNN compiles a kernel of
half a megabyte per row count and matrix. One row takes longer than four."""


@dataclass(frozen=True)
class Norm:
    """A layer norm with gain and bias, (d_model) each."""

    gain: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise rows of (rows, d_model)."""
        return F.layer_norm(x, self.gain.shape, self.gain, self.bias, self.eps)

    def to(self, dtype: torch.dtype) -> Norm:
        """The same in another dtype; itself if it has that dtype."""
        return Norm(self.gain.to(dtype), self.bias.to(dtype), self.eps)


@dataclass(frozen=True)
class Affine:
    """`x·W + b` with W (d_in, d_out), as in transformers' Conv1D.

    Args:
        matrix: W, or Wᵀ in oneDNN's packed layout.
        bias: b, (d_out).
        dense: W beside its packed form, if it is used often; otherwise W is unpacked at each use.
    """

    matrix: Tensor
    bias: Tensor
    dense: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """W, (d_in, d_out)."""
        if self.dense is not None:
            return self.dense
        return self.matrix.to_dense().T if self.matrix.is_mkldnn else self.matrix

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply rows of (rows, d_in): (rows, d_out)."""
        if not self.matrix.is_mkldnn:
            return torch.addmm(self.bias, x, self.matrix)
        step = next(step for most, step in ROW_STEPS if len(x) <= most)
        lacking = step * max(1, math.ceil(len(x) / step)) - len(x)
        padded = F.pad(x, (0, 0, 0, lacking)) if lacking else x
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            padded, self.matrix, self.bias, "none", [], ""
        )
        return product[: len(x)]

    def to(self, dtype: torch.dtype) -> Affine:
        """The same in another dtype; itself if it has that dtype."""
        if self.bias.dtype == dtype:
            return self
        return Affine(self.weight.to(dtype), self.bias.to(dtype))


def affine(weight: Tensor, bias: Tensor, *, keep: bool = False) -> Affine:
    """`x·W + b`, packed by oneDNN if that is faster.

    Args:
        weight: W, (d_in, d_out).
        bias: b, (d_out).
        keep: Whether W stays beside its packed form.
    """
    if not PACKED or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return Affine(weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.T)
    return Affine(packed, bias.clone(), weight.clone() if keep else None)
