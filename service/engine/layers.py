"""Layers: the norms and the products of a block.

Matrices stay as they are in the checkpoint's modules, except in float32 on a processor with AVX:
oneDNN multiplies up to twice as fast by matrices in its packed layout, so they are kept packed.
Nothing writes to resident tensors.
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
    """A layer norm, or an RMS norm, over the last dimension.

    Args:
        gain: The factor of each entry, (width).
        bias: (width); None: no bias.
        eps: Added to the variance, or to the mean square.
        rms: Whether it is an RMS norm, which does not subtract the mean.
        exact: The gain in float64 if it differs from the stored one, as in Gemma, which stores it
            minus 1; None: the stored one.
    """

    gain: Tensor
    bias: Tensor | None
    eps: float
    rms: bool = False
    exact: Tensor | None = None

    def __call__(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """Normalise vectors (..., width), in the wider of the dtypes of x and of the gain.

        Args:
            x: (..., width).
            gain: Another gain for each vector of an RMS norm, (..., width); None: the norm's own.
        """
        same = x.dtype == self.gain.dtype
        wide = x if same else x.to(torch.promote_types(x.dtype, self.gain.dtype))
        if gain is not None:
            normed = F.rms_norm(wide, self.gain.shape, None, self.eps) * gain
        elif self.rms:
            normed = F.rms_norm(wide, self.gain.shape, self.gain, self.eps)
        else:
            normed = F.layer_norm(wide, self.gain.shape, self.gain, self.bias, self.eps)
        return normed if same and gain is None else normed.to(x.dtype)

    def to(self, dtype: torch.dtype) -> Norm:
        """The same norm in another dtype; a wider gain keeps its own."""
        wide = torch.promote_types(self.gain.dtype, dtype)
        if wide == self.gain.dtype:
            return self
        gain = self.gain if self.exact is None else self.exact
        bias = None if self.bias is None else self.bias.to(wide)
        return Norm(gain.to(wide), bias, self.eps, self.rms, self.exact)


@dataclass(frozen=True)
class Affine:
    """`x·W + b` with W (d_in, d_out), as in transformers' Conv1D.

    Args:
        matrix: W, or Wᵀ in oneDNN's packed layout.
        bias: b, (d_out); None: no bias.
    """

    matrix: Tensor
    bias: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """W, (d_in, d_out), unpacked at each use."""
        return self.matrix.to_dense().T if self.matrix.is_mkldnn else self.matrix

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of W."""
        return self.matrix.dtype

    @property
    def width(self) -> int:
        """d_out."""
        return self.matrix.shape[0 if self.matrix.is_mkldnn else 1]

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply rows of (rows, d_in): (rows, d_out)."""
        return _product(x, self.matrix, self.bias)

    def product(self, x: Tensor) -> Tensor:
        """`x·W` without the bias, for rows of (rows, d_in), in the dtype of x."""
        return _product(x, self.matrix if x.dtype == self.dtype else self.weight.to(x.dtype), None)

    def times(self, x: Tensor, matrix: Tensor) -> Tensor:
        """`x·M + b` for rows of (rows, d_in): the same bias with another matrix."""
        return _product(x, matrix, self.bias)

    def to(self, dtype: torch.dtype) -> Affine:
        """The same in another dtype; itself if it has that dtype."""
        if self.dtype == dtype:
            return self
        return Affine(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


def _product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """`x·W + b`, W packed or not."""
    if not matrix.is_mkldnn:
        return x @ matrix if bias is None else torch.addmm(bias, x, matrix)
    step = next(step for most, step in ROW_STEPS if len(x) <= most)
    lacking = step * max(1, math.ceil(len(x) / step)) - len(x)
    padded = F.pad(x, (0, 0, 0, lacking)) if lacking else x
    product: Tensor = torch.ops.mkldnn._linear_pointwise(padded, matrix, bias, "none", [], "")
    return product[: len(x)]


def affine(weight: Tensor, bias: Tensor | None = None) -> Affine:
    """`x·W + b`, packed by oneDNN if that is faster.

    Args:
        weight: W, (d_in, d_out).
        bias: b, (d_out); None: no bias.
    """
    if not PACKED or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return Affine(weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.T)
    return Affine(packed, None if bias is None else bias.clone())
