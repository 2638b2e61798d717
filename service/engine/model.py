"""The resident model: its weights, its tokenizer, and what `/v1/model` says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from schemas.activations import HookPoint
from schemas.common import DType, ModelSummary
from service.engine.block import Block
from service.engine.families import Family
from service.engine.layers import Norm
from service.engine.text import Tokenizer

DTYPES: Mapping[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DTYPE_NAMES: Mapping[torch.dtype, DType] = {dtype: name for name, dtype in DTYPES.items()}
UNEMBEDDING_SLICE = 8192
"""Rows of the unembedding that are cast to another dtype at a time."""


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
        token_embedding: (vocab, d_model).
        position_embedding: (n_positions, d_model).
        final_norm: The norm before the unembedding.
        unembedding: (vocab, d_model).
    """

    id: str
    revision: str | None
    weights_digest: str
    config_digest: str
    architecture: str
    family: Family
    tokenizer: Tokenizer
    blocks: tuple[Block, ...]
    token_embedding: Tensor
    position_embedding: Tensor
    final_norm: Norm
    unembedding: Tensor

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.token_embedding.shape[1]

    @property
    def d_mlp(self) -> int:
        """Width of the MLP's hidden layer."""
        return self.blocks[0].w_in.weight.shape[1]

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        return self.token_embedding.shape[0]

    @property
    def n_positions(self) -> int:
        """Positions that the model has embeddings for."""
        return self.position_embedding.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the resident weights."""
        return self.token_embedding.dtype

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return self.token_embedding.device

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
        return self.d_mlp if point in ("mlp_pre", "mlp_act") else self.d_model

    def logits(self, x: Tensor) -> Tensor:
        """Apply the final norm and the unembedding to x (rows, d_model), in the dtype of x.

        Returns:
            (rows, vocab).
        """
        normed = self.final_norm.to(x.dtype)(x)
        if x.dtype == self.dtype:
            return normed @ self.unembedding.T
        slices = torch.split(self.unembedding, UNEMBEDDING_SLICE)
        return torch.cat([normed @ rows.to(x.dtype).T for rows in slices], -1)

    @cached_property
    def weight_norms(self) -> WeightNorms:
        """Norms of each layer's first MLP weight."""
        return WeightNorms(self.blocks)


class WeightNorms(dict[int, tuple[float, float]]):
    """Frobenius norm and spectral norm of each layer's first MLP weight in float64, computed when
    the layer is first asked for."""

    def __init__(self, blocks: tuple[Block, ...]) -> None:
        self._blocks = blocks

    def __missing__(self, layer: int) -> tuple[float, float]:
        w = self._blocks[layer].w_in.weight.double()
        # The largest eigenvalue of W·Wᵀ takes a fifth of the time of an SVD.
        largest = torch.linalg.eigvalsh(w @ w.T)[-1]
        self[layer] = float(torch.linalg.vector_norm(w)), float(largest.sqrt())
        return self[layer]
