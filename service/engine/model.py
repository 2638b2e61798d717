"""The resident model: its weights, its tokenizer, and what `/v1/model` says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, get_args

import torch
from torch import Tensor

from schemas.activations import HookPoint
from schemas.common import DType, ModelSummary
from service.engine.block import Block
from service.engine.families.family import Ends, Family, Side
from service.engine.text import Tokenizer

T = TypeVar("T")
DTYPES: Mapping[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DTYPE_NAMES: Mapping[torch.dtype, DType] = {dtype: name for name, dtype in DTYPES.items()}
UNEMBEDDING_SLICE = 8192
"""Rows of the unembedding that are cast to another dtype at a time."""


@dataclass(frozen=True)
class FirstWeight:
    """One of the MLP's first weights.

    Args:
        name: Its name in the checkpoint.
        columns: Its columns of W = [W_gate | W_up].
        shape: Its shape as stored.
    """

    name: str
    columns: slice
    shape: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Model:
    """A resident model. Its weights are never written.

    Args:
        id: The name that was asked for; for a folder, its last part.
        revision: The commit of a hub checkpoint; None for a folder and for the bundled model.
        config_digest: SHA-256 of the configuration, without names and versions.
        weights_digest: sha256 over the bytes of the loaded safetensors files, in the order of
            their names.
        architecture: The class that transformers loads, such as `GPT2LMHeadModel`.
        family: The layout of this architecture.
        tokenizer: Converts text to ids and back.
        blocks: The transformer blocks.
        ends: The embeddings and the final norm.
        unembedding: (vocab, d_model).
        n_positions: Number of positions that the model has.
        end_tokens: Ids that end a generated text.
    """

    id: str
    revision: str | None
    weights_digest: str
    config_digest: str
    architecture: str
    family: Family
    tokenizer: Tokenizer
    blocks: tuple[Block, ...]
    ends: Ends
    unembedding: Tensor
    n_positions: int
    end_tokens: frozenset[int]

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.unembedding.shape[1]

    @property
    def d_mlp(self) -> int:
        """Width of the MLP's hidden layer."""
        return self.blocks[0].w_in.width // len(self.blocks[0].pre_points)

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        return self.ends.token_embedding.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the resident weights."""
        return self.unembedding.dtype

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return self.unembedding.device

    @property
    def gated(self) -> bool:
        """Whether the MLP has two first weights, W_gate and W_up."""
        return self.blocks[0].gated

    @property
    def parallel(self) -> bool:
        """Whether the MLP reads the residual stream before attention."""
        return self.blocks[0].parallel

    @property
    def post_norms(self) -> bool:
        """Whether a norm follows the MLP."""
        return self.blocks[0].post_mlp is not None

    @property
    def absolute_positions(self) -> bool:
        """Whether a token's position is part of its residual stream."""
        return self.ends.position_embedding is not None

    @property
    def anchor(self) -> str | None:
        """Text of the tokens that the baseline `anchored` puts first. None if the tokenizer has
        none, or the model has no embedding for them."""
        ids = self.tokenizer.anchor
        if not ids or max(ids) >= self.vocab_size:
            return None
        return "".join(token.text for token in self.tokenizer.tokens(ids))

    @property
    def hook_points(self) -> tuple[HookPoint, ...]:
        """The hook points of a block, in the order in which it computes them."""
        points: tuple[HookPoint, ...] = get_args(HookPoint)
        return tuple(point for point in points if self.gated or point != "mlp_pre_linear")

    @property
    def summary(self) -> ModelSummary:
        """The weights that the numbers come from, as every answer says."""
        return ModelSummary(
            id=self.id,
            revision=self.revision,
            weights_digest=self.weights_digest,
            dtype=DTYPE_NAMES[self.dtype],
            device=str(self.device),
            attention="sdpa",
        )

    def width(self, point: HookPoint) -> int:
        """Length of a hook point's vectors."""
        return self.d_mlp if point in ("mlp_pre", "mlp_pre_linear", "mlp_act") else self.d_model

    def first_weights(self, layer: int | str) -> tuple[FirstWeight, ...]:
        """The first weights of a layer's MLP, in the order of their columns."""
        family, width = self.family, self.d_mlp
        shape = (self.d_model, width) if family.fan_in_fan_out else (width, self.d_model)
        return tuple(
            FirstWeight(f"{self.path(layer, module)}.weight", slice(at, at + width), shape)
            for at, module in zip(range(0, 2 * width, width), family.first_weights, strict=False)
        )

    def second_weight(self, layer: int) -> str:
        """Name of the MLP's second weight."""
        return f"{self.path(layer, self.family.second_weight)}.weight"

    def bias_parameter(self, layer: int) -> str | None:
        """Name of the parameter that can hold Δh, or None if the block's output has no bias."""
        block = self.blocks[layer]
        held = block.w_out.bias is not None and block.post_mlp is None
        return f"{self.path(layer, self.family.second_weight)}.bias" if held else None

    def post_norm_gain(self, layer: int) -> str | None:
        """Name of the gain of the norm after the MLP, or None if there is none."""
        norm = self.family.post_norm
        return None if norm is None else f"{self.path(layer, norm)}.weight"

    def module_path(self, point: HookPoint) -> tuple[str, Side] | None:
        """Path of the module that a hook point is the input or output of, with `{layer}`."""
        if self.parallel and point == "resid_mid":
            # Nothing reads the stream between attention and the MLP of a parallel block.
            return None
        module, side = self.family.module_paths[point]
        return self.path("{layer}", module), side

    def path(self, layer: int | str, module: str) -> str:
        """Path of a block's module in the checkpoint."""
        return f"{self.family.blocks}.{layer}" + (f".{module}" if module else "")

    def logits(self, x: Tensor) -> Tensor:
        """Apply the final norm and the unembedding to x (rows, d_model), in the dtype of x.

        Returns:
            (rows, vocab).
        """
        normed = self.ends.final_norm.to(x.dtype)(x)
        if x.dtype == self.dtype:
            return normed @ self.unembedding.T
        slices = torch.split(self.unembedding, UNEMBEDDING_SLICE)
        return torch.cat([normed @ rows.to(x.dtype).T for rows in slices], -1)

    @cached_property
    def weight_norms(self) -> PerLayer[tuple[tuple[float, float], ...]]:
        """Frobenius norm and spectral norm of each of a layer's first MLP weights, in float64."""
        return PerLayer(self._weight_norms)

    @cached_property
    def second_weight_norms(self) -> PerLayer[float]:
        """Frobenius norm of a layer's second MLP weight, in float64."""
        return PerLayer(lambda layer: _frobenius(self.blocks[layer].w_out.weight))

    def _weight_norms(self, layer: int) -> tuple[tuple[float, float], ...]:
        block = self.blocks[layer]
        weights = block.w_in.weight.chunk(len(block.pre_points), -1)
        return tuple((_frobenius(weight), _spectral(weight)) for weight in weights)


class PerLayer(dict[int, T]):
    """Figures of layers, each computed when its layer is first asked for."""

    def __init__(self, compute: Callable[[int], T]) -> None:
        self._compute = compute

    def __missing__(self, layer: int) -> T:
        self[layer] = self._compute(layer)
        return self[layer]


def _frobenius(weight: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight, dtype=torch.float64))


def _spectral(weight: Tensor) -> float:
    w = weight.double()
    # The largest eigenvalue of W·Wᵀ takes a fifth of the time of an SVD.
    gram = w @ w.T if len(w) <= w.shape[1] else w.T @ w
    return float(torch.linalg.eigvalsh(gram)[-1].sqrt())
