"""Load a checkpoint, and refuse one that deltaw would compute differently from transformers.

transformers builds the modules and reads the tokenizer, without code from a checkpoint; deltaw
keeps the tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from schemas.common import DType
from service.engine.families import FAMILIES, Family
from service.engine.folder import WEIGHTS, locate, reading, refuse_folder, weight_files
from service.engine.imports import without_compiler
from service.engine.model import DTYPES, Model
from service.engine.run import Run, Site
from service.engine.text import Tokenizer
from service.engine.walk import forward
from service.errors import CannotLoad

BUFFERS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$")
"""Names of tensors that old checkpoints store in a block and that are not weights: masks,
frequencies."""
STATIC = ("default", "linear", "llama3", "proportional", "yarn")
"""Types of rotary embeddings whose frequencies do not depend on the length of the prompt."""
PROBE_TOKENS = 16
STRIDE = 7919
"""Step between the ids of the prompt on which a loaded model is compared with transformers."""
DIFFERENT: Mapping[torch.dtype, float] = {
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.05,
}
"""Relative error of logits above which two models compute something else. In half precision a
difference of a few per cent cannot be told from rounding."""
STORED: Mapping[torch.dtype, str] = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
"""Names of dtypes in safetensors files."""
OWN_CODE = "its {} names code of its own (`auto_map`), which is not run"


def load(name: str, *, revision: str | None, device: str, dtype: DType) -> Model:
    """Load a checkpoint and keep it resident.

    Args:
        name: `bundled`, a folder, or a hub id such as `gpt2`.
        revision: Branch, tag or commit of a hub id. A folder has none.
        device: `auto` (the first GPU, else the CPU), or a torch device.
        dtype: `float32`, `bfloat16` or `float16`.

    Raises:
        CannotLoad: The checkpoint cannot be found or read, or deltaw would not compute what
            transformers computes.
    """
    disable_progress_bar()
    where = _device(device)
    folder, commit = locate(name, revision)
    refuse_folder(name, folder, commit)
    with reading(f"the config.json of {name!r}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    family = FAMILIES.get(config.model_type)
    if family is None:
        served = ", ".join(FAMILIES)
        raise CannotLoad(f"{name!r} is a {config.model_type!r} model; deltaw serves: {served}")
    if reason := _refusal(config) or family.refuse(config, DTYPES[dtype]):
        raise CannotLoad(f"{name!r} cannot be served: {reason}")
    files = weight_files(name, folder, commit)
    tokenizer = _tokenizer(name, folder)
    with _fitting(name, where), reading(repr(name)), without_compiler():
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    refusal = None
    if missing := sorted(loading["missing_keys"]):
        refusal = f"lacks {len(missing)} weights, {missing[0]} among them"
    elif left := sorted(filter(_block_weight(family), loading["unexpected_keys"])):
        refusal = f"has weights that its config.json does not name, such as {left[0]}"
    elif getattr(model.get_output_embeddings(), "bias", None) is not None:
        refusal = "cannot be served: its unembedding has a bias"
    elif max(tokenizer.prefix, default=-1) >= config.vocab_size:
        refusal = "cannot be served: its tokenizer begins texts with a token that has no embedding"
    if refusal:
        raise CannotLoad(f"{name!r} {refusal}")
    with _fitting(name, where):
        model.requires_grad_(False).eval().to(where)
        probe = [STRIDE * i % config.vocab_size for i in range(1, PROBE_TOKENS + 1)]
        probe = probe[: config.max_position_embeddings]
        expected = _logits(name, model, probe)
        loaded = Model(
            id=folder.name if Path(name).is_dir() else name,
            revision=commit,
            weights_digest=f"sha256:{digest.hexdigest()}",
            config_digest=_config_digest(config),
            architecture=type(model).__name__,
            family=family,
            tokenizer=tokenizer,
            end_tokens=tokenizer.end_tokens | _end_tokens(model.generation_config.eos_token_id),
            **_resident(name, family, model, mapped=_mapped(files, model)),
        )
        _compare(name, loaded, probe, expected)
        return loaded


@contextmanager
def _fitting(name: str, where: torch.device) -> Iterator[None]:
    """Turn a lack of memory into one sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise CannotLoad(
            f"{name!r} does not fit on {where}: set DELTAW_DTYPE to `bfloat16`, or DELTAW_DEVICE "
            "to `cpu`"
        ) from error


def _tokenizer(name: str, folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint.

    transformers' own tokenizer is freed when this call returns: Gemma's takes 170 MB, which would
    otherwise stay in memory beside the weights.

    Raises:
        CannotLoad: It has code of its own.
    """
    with reading(repr(name)):
        theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer = Tokenizer(theirs)
    if theirs.init_kwargs.get("auto_map"):
        raise CannotLoad(f"{name!r} cannot be served: {OWN_CODE.format('tokenizer_config.json')}")
    return tokenizer


def _end_tokens(ids: int | Sequence[int] | None) -> frozenset[int]:
    """The ids that a generation_config.json, or else a config.json, says end a text."""
    return frozenset([ids] if isinstance(ids, int) else ids or ())


def _block_weight(family: Family) -> Callable[[str], bool]:
    """Return a predicate: whether a name in a checkpoint is that of a block's weight."""
    blocks = re.compile(rf"(^|\.){family.blocks.rpartition('.')[2]}\.\d+\.")
    return lambda name: bool(blocks.search(name)) and not BUFFERS.search(name)


def _mapped(files: Sequence[Path], model: Any) -> bool:
    """Whether any tensor of a model is a view of its file, because it has the stored dtype."""
    if model.device.type != "cpu":
        return False
    stored = set()
    for file in files:
        with safe_open(file, "pt") as opened:
            stored |= {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
    return STORED[model.dtype] in stored


def _resident(name: str, family: Family, model: Any, *, mapped: bool) -> dict[str, Any]:
    """Take the tensors out of a model block by block, so that at most one block is in memory twice.

    Args:
        name: The name that was asked for.
        family: The layout of the architecture.
        model: transformers' model.
        mapped: Whether tensors may be views of the file. Such tensors are copied.

    Raises:
        CannotLoad: An activation function has weights.
    """
    ends = family.ends(model)
    modules = model.get_submodule(family.blocks)
    blocks = []
    for layer in range(len(modules)):
        blocks.append(family.block(modules[layer], model.config, layer, ends.rotaries))
        modules[layer] = nn.Identity()
        function = blocks[-1].activation
        if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
            raise CannotLoad(
                f"{name!r} cannot be served: its activation function has weights of its own"
            )

    def kept(tensor: Tensor) -> Tensor:
        return tensor.clone() if mapped else tensor.detach()

    own, output = kept(ends.token_embedding), model.get_output_embeddings().weight
    positions = ends.position_embedding
    return {
        "blocks": tuple(blocks),
        "ends": replace(
            ends,
            token_embedding=own,
            position_embedding=None if positions is None else kept(positions),
        ),
        "unembedding": own if output is ends.token_embedding else kept(output),
        "n_positions": model.config.max_position_embeddings,
    }


def _logits(name: str, model: Any, probe: Sequence[int]) -> Tensor:
    """The logits that transformers computes, (rows, vocab)."""
    ids = torch.tensor([probe], device=model.device)
    with reading(f"{name!r}"), torch.inference_mode():
        logits: Tensor = model(ids, use_cache=False).logits
    return logits[0].float()


def _compare(name: str, loaded: Model, probe: Sequence[int], expected: Tensor) -> None:
    """Compare the walk with transformers on a short prompt, whatever the configuration says.

    Raises:
        CannotLoad: They differ, so the configuration switches on something that the walk does not
            compute.
    """
    site = Site(loaded.n_layers - 1, "resid_post")
    run = Run(probe, range(len(probe)), {site: range(len(probe))})
    with torch.inference_mode():
        (read,) = forward(loaded, [run])
        error = (loaded.logits(read[site]).float() - expected).norm() / expected.norm()
    # NaN is not greater: the self-check finds a checkpoint with NaN, and the service says so. NaN
    # in another token's embedding, or in the unembedding, is left to the requests that meet it.
    if error > DIFFERENT[loaded.dtype]:
        raise CannotLoad(
            f"{name!r} cannot be served: its config.json switches on something that deltaw does "
            f"not compute (its logits differ from those of transformers by {float(error):.1g})"
        )


def _config_digest(config: Any) -> str:
    """SHA-256 of a configuration, without the entries that change no number."""
    names = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
    fields = {name: value for name, value in config.to_dict().items() if name not in names}
    canonical = json.dumps(fields, sort_keys=True, default=str).encode()
    return f"sha256:{hashlib.sha256(canonical).hexdigest()}"


def _refusal(config: Any) -> str | None:
    """Say why a configuration of any family is refused, or None if it is not."""
    if config.num_hidden_layers < 1:
        return "it has no layers"
    turns = getattr(config, "rope_parameters", None) or {}
    kinds = {part["rope_type"] for part in (turns, *turns.values()) if _typed(part)}
    if unknown := sorted(kinds - set(STATIC)):
        types = ", ".join(STATIC)
        return f"its rotary embedding is of the type {unknown[0]!r}; deltaw serves: {types}"
    layer_types = set(getattr(config, "layer_types", None) or ())
    if unknown := sorted(layer_types - {"full_attention", "sliding_attention"}):
        return f"it has layers of the type {unknown[0]!r}"
    if not getattr(config, "is_causal", True):
        return "its attention is not causal (`is_causal` in config.json is false)"
    if getattr(config, "quantization_config", None) is not None:
        return "it is quantized (`quantization_config` in config.json): save it dequantized"
    if getattr(config, "transformers_weights", None) is not None:
        return f"config.json names other weights (`transformers_weights`) than {WEIGHTS}"
    return OWN_CODE.format("config.json") if getattr(config, "auto_map", None) else None


def _typed(part: Any) -> bool:
    return isinstance(part, Mapping) and "rope_type" in part


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
