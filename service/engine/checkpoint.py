"""Checkpoints: find one, refuse what cannot be served, and keep it resident.

safetensors only, no code from a checkpoint, no pickles. A name is `bundled`, a folder, or a hub id;
a hub id goes through the hub's cache and becomes a folder too, so everything is loaded in one way.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import service.checkpoints
from schemas.activations import HookPoint
from schemas.common import DType, ModelSummary
from service.engine.families import FAMILIES, Block, Family, Norm
from service.engine.text import Tokenizer
from service.errors import CannotLoad

BUNDLED = "bundled"
INSTEAD = "set DELTAW_MODEL to a folder that holds a GPT-2 checkpoint, or to `bundled`"
FILES = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
]
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
BLOCK_WEIGHT = re.compile(r"(^|\.)h\.\d+\.(?!attn\.(bias|masked_bias)$)")
"""A weight of a block; the masks that old checkpoints bring along are none."""
DTYPES: Mapping[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DTYPE_NAMES: Mapping[torch.dtype, DType] = {dtype: name for name, dtype in DTYPES.items()}
UNEMBEDDING_SLICE = 8192
"""Rows of the unembedding that are cast at a time."""


@dataclass(frozen=True, eq=False)
class Model:
    """A resident model: its tensors, its tokenizer and what is known of it. Never written.

    Args:
        id: As it was asked for; of a folder its name alone.
        revision: The commit of a hub checkpoint; None for a folder.
        weights_digest: sha256 over the bytes of the safetensors files in the order of their names.
        architecture: The class that the checkpoint names, such as `GPT2LMHeadModel`.
        family: How this architecture is laid out.
        tokenizer: Text to ids and back.
        blocks: The transformer blocks.
        token_embedding: (vocab, d_model).
        position_embedding: (n_positions, d_model).
        final_norm: Before the unembedding.
        unembedding: (vocab, d_model).
    """

    id: str
    revision: str | None
    weights_digest: str
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
        """Transformer blocks."""
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
        """Where the weights are."""
        return self.token_embedding.device

    @property
    def summary(self) -> ModelSummary:
        """The weights that numbers come from, as every answer says."""
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
        """Final norm and unembedding of rows (rows, d_model), in their dtype: (rows, vocab)."""
        normed = self.final_norm.to(x.dtype)(x)
        if x.dtype == self.dtype:
            return normed @ self.unembedding.T
        slices = torch.split(self.unembedding, UNEMBEDDING_SLICE)
        return torch.cat([normed @ rows.to(x.dtype).T for rows in slices], -1)

    @cached_property
    def weight_norms(self) -> WeightNorms:
        """Norms of the first MLP weights, computed when a layer is first asked for."""
        return WeightNorms(self.blocks)


class WeightNorms:
    """‖W‖ of each layer's first MLP weight in float64, at its first use, kept."""

    def __init__(self, blocks: tuple[Block, ...]) -> None:
        self._blocks = blocks
        self._known: dict[int, tuple[float, float]] = {}

    def __getitem__(self, layer: int) -> tuple[float, float]:
        """Frobenius and spectral norm. The latter from W·Wᵀ's largest eigenvalue: a fifth of an
        SVD."""
        if layer not in self._known:
            w = self._blocks[layer].w_in.weight.double()
            largest = torch.linalg.eigvalsh(w @ w.T)[-1]
            self._known[layer] = float(torch.linalg.vector_norm(w)), float(largest.sqrt())
        return self._known[layer]


def load(name: str, *, revision: str | None, device: str, dtype: DType) -> Model:
    """Load a checkpoint and keep it resident.

    Args:
        name: `bundled`, a folder, or a hub id such as `gpt2`.
        revision: Branch, tag or commit of a hub id.
        device: `auto` (the first GPU, else the CPU), or a torch device.
        dtype: `float32`, `bfloat16` or `float16`.

    Raises:
        CannotLoad: It cannot be found or read, or is of a kind that cannot be served.
    """
    disable_progress_bar()
    where = _device(device)
    folder, commit = _locate(name, revision)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CannotLoad(f"{name!r} has no safetensors file, and pickles are not loaded: {INSTEAD}")
    if not any(all((folder / file).is_file() for file in files) for files in TOKENIZER_FILES):
        raise CannotLoad(f"{name!r} has no tokenizer: {INSTEAD}")
    with _reading(f"the config.json of {name!r}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    family = FAMILIES.get(config.model_type)
    if family is None:
        served = ", ".join(FAMILIES)
        raise CannotLoad(f"{name!r} is a {config.model_type!r} model; served are: {served}")
    if reason := family.refuse(config):
        raise CannotLoad(f"{name!r} cannot be served: {reason}")
    with _reading(repr(name)):
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = Tokenizer(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    if missing := sorted(loading["missing_keys"]):
        raise CannotLoad(f"{name!r} lacks {len(missing)} weights, {missing[0]} among them")
    if left := sorted(key for key in loading["unexpected_keys"] if BLOCK_WEIGHT.search(key)):
        raise CannotLoad(
            f"{name!r} has weights that its config.json does not name, such as {left[0]}"
        )
    try:
        model.requires_grad_(False).eval().to(where)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise CannotLoad(
            f"{name!r} does not fit on {where}: set DELTAW_DTYPE to `bfloat16`, or DELTAW_DEVICE "
            "to `cpu`"
        ) from error
    shown = folder.name if Path(name).is_dir() else name
    return _resident(shown, commit, _digest(files), family, model, tokenizer)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Whatever a library stumbles over in a broken checkpoint, as one sentence."""
    try:
        yield
    except Exception as error:
        raise CannotLoad(f"{what} cannot be read ({type(error).__name__}): {INSTEAD}") from error


def _resident(
    name: str, commit: str | None, digest: str, family: Family, model: Any, tokenizer: Tokenizer
) -> Model:
    body = model.transformer
    embedding, output = body.wte.weight, model.get_output_embeddings().weight
    # Copies, as views would keep the whole file in memory.
    own = embedding.clone()
    return Model(
        id=name,
        revision=commit,
        weights_digest=digest,
        architecture=type(model).__name__,
        family=family,
        tokenizer=tokenizer,
        blocks=family.blocks(model),
        token_embedding=own,
        position_embedding=body.wpe.weight.clone(),
        final_norm=Norm(body.ln_f.weight.clone(), body.ln_f.bias.clone(), body.ln_f.eps),
        unembedding=own if output is embedding else output.clone(),
    )


def _locate(name: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of a checkpoint, and its commit where it comes from the hub."""
    if name == BUNDLED:
        return Path(service.checkpoints.__path__[0]) / BUNDLED, None
    if Path(name).is_dir():
        return Path(name), None
    try:
        folder = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=FILES, ignore_patterns=["*/*"]
            )
        )
    except HFValidationError as error:
        raise CannotLoad(f"{name!r} is neither a folder nor a hub id: {INSTEAD}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        raise CannotLoad(
            f"{name!r} is not in the hub's cache and cannot be fetched "
            f"({type(error).__name__}): {INSTEAD}"
        ) from error
    return folder, folder.name


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    instead = "set DELTAW_DEVICE to `cpu`"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise CannotLoad(f"the device {name!r} is not served: {instead}")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise CannotLoad(f"there is no device {name!r} here: {instead}") from error


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
