"""The independent proof: patched weights, written into transformers' own modules.

The updates come from an answer of ``POST /v1/weight-updates``, as parsed JSON, for the sequential
stream, all layers and one query position. They are added to the parameters of the model that
transformers loads from the checkpoint folder, each by its name. transformers then runs the
baseline's tokens alone, and the logits are those of the full prompt (docs/theory.md, "Streams").
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from .checkpoint import Array
from .checks import relative_error
from .distributions import kl_divergence

Answer = Mapping[str, Any]
"""Parsed JSON of an answer, or a part of it."""


@dataclass(frozen=True)
class Proof:
    """The logits of the written model on the baseline, compared with those of the full prompt."""

    relative_error: float
    kl_divergence: float  # KL(full prompt || written), in nats
    unwritten_relative_error: float  # of the model as it is, on the baseline
    unwritten_kl_divergence: float
    same_top_token: bool


def proof(folder: Path, answer: Answer, prepare: Callable[[Any], Any] | None = None) -> Proof:
    """Compare the written model on the baseline with the model as it is on the full prompt.

    Args:
        folder: The checkpoint.
        answer: The updates.
        prepare: Changes how the loaded model computes; None: it stays as it is.
    """
    model = loaded(folder) if prepare is None else prepare(loaded(folder))
    expected, unwritten = full_logits(model, answer), baseline_logits(model, answer)
    with torch.no_grad():
        for update in answer["updates"]:
            write(model, update)
    actual = baseline_logits(model, answer)
    return Proof(
        relative_error=relative_error(actual, expected),
        kl_divergence=kl_divergence(expected, actual),
        unwritten_relative_error=relative_error(unwritten, expected),
        unwritten_kl_divergence=kl_divergence(expected, unwritten),
        same_top_token=bool(actual.argmax() == expected.argmax()),
    )


def loaded(folder: Path) -> Any:
    """The model of a checkpoint folder as transformers loads it, in float32."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )


@torch.no_grad()
def full_logits(model: Any, answer: Answer) -> Array:
    """The logits (vocab) after the context and the query, at the updates' position."""
    ids = [*_ids(answer, "context"), *_ids(answer, "query")[: _position(answer) + 1]]
    logits: torch.Tensor = model(torch.tensor([ids])).logits[0, -1]
    return logits.double().numpy()


@torch.no_grad()
def baseline_logits(model: Any, answer: Answer) -> Array:
    """The logits (vocab) after the baseline's tokens alone, at the updates' position."""
    ids, places = baseline(answer, _position(answer))
    logits: torch.Tensor = model(
        torch.tensor([ids]), attention_mask=masks(model, places), position_ids=places[None]
    ).logits[0, -1]
    return logits.double().numpy()


def write(model: Any, update: Answer) -> None:
    """Add the update of one layer to the parameters of the model, each by its name.

    Call it without gradients.

    Raises:
        ValueError: The answer's form is ``bias`` and no parameter can hold Δh.
    """
    for weight in update["weights"]:
        if list(weight["shape"]) != list(model.get_parameter(weight["name"]).shape):
            raise ValueError(f"{weight['name']} is stored in another shape")
        _add(model, weight["name"], update["input"], weight["output"])
    if "w_out" in update:
        _add(model, update["w_out"]["name"], update["w_out"]["input"], update["w_out"]["output"])
    if "gain" in update:
        parameter = model.get_parameter(update["gain"]["name"])
        # Gemma stores a gain less 1.
        missing = 1.0 if model.config.model_type == "gemma3_text" else 0.0
        parameter.copy_(torch.from_numpy(values(update["gain"]["values"]) - missing))
    if "bias" in update:
        name = update["bias"]["parameter"]
        if name is None:
            raise ValueError("no parameter holds Δh: ask for the form `weights`")
        model.get_parameter(name).add_(torch.from_numpy(values(update["bias"]["values"])))


def baseline(answer: Answer, position: int) -> tuple[list[int], torch.Tensor]:
    """The ids of the baseline run up to a query position, and their positions."""
    context, query = _ids(answer, "context"), _ids(answer, "query")[: position + 1]
    asked = answer["baseline"]
    if asked in ("matched", "alone"):
        kept = []
    elif asked == "anchored":
        kept = [0]
    elif "without" in asked:
        lost = {i for begin, end in asked["without"] for i in range(begin, end)}
        kept = [i for i in range(len(context)) if i not in lost]
    else:
        context = asked["context"]
        if isinstance(context, str):
            raise ValueError("give the other context as ids")
        kept = list(range(len(context)))
    places = [*kept, *answer["positions"]["baseline"][: position + 1]]
    return [*(context[i] for i in kept), *query], torch.tensor(places)


def values(tensor: Answer) -> Array:
    """The numbers of a tensor on the wire, in float64."""
    if tensor["encoding"] == "base64":
        stored = np.dtype(tensor["dtype"]).newbyteorder("<")
        flat = np.frombuffer(base64.b64decode(tensor["data"]), dtype=stored)
    else:
        flat = np.array(tensor["data"], dtype=tensor["dtype"])
    return flat.reshape(tensor["shape"]).astype(np.float64)


def _add(model: Any, name: str, input_factor: Answer, output_factor: Answer) -> None:
    """Add outer(input, output) to a weight, transposed where its module stores [out, in]."""
    change = np.outer(values(input_factor), values(output_factor))
    owner = model.get_submodule(name.removesuffix(".weight"))
    stored = change if type(owner).__name__ == "Conv1D" else change.T
    parameter = model.get_parameter(name)
    parameter.copy_(parameter.double() + torch.from_numpy(stored))


def masks(model: Any, places: torch.Tensor) -> Any:
    """What each row may attend to, added to the scores: (1, 1, T, T), by layer type if needed.

    transformers applies a mask of four axes as it is. Without one it takes gaps in the positions
    for the borders of separate texts, and counts a window in rows.
    """
    distance = places[:, None] - places[None, :]
    causal = torch.ones(len(places), len(places)).tril().bool()

    def added(sees: torch.Tensor) -> torch.Tensor:
        return torch.zeros(sees.shape).masked_fill(~sees, -torch.inf)[None, None]

    window = getattr(model.config, "sliding_window", None)
    narrow = causal if window is None else causal & (distance < window)
    if model.config.model_type in ("gemma3_text", "qwen2", "qwen3"):
        return {"full_attention": added(causal), "sliding_attention": added(narrow)}
    return added(narrow)


def _ids(answer: Answer, part: str) -> list[int]:
    """The ids of the listed context or query."""
    return [token["id"] for token in answer["tokens"][part]]


def _position(answer: Answer) -> int:
    """The one query position of all updates."""
    positions = {update["position"] for update in answer["updates"]}
    if len(positions) != 1:
        raise ValueError(f"the updates are of {len(positions)} positions, not of one")
    return int(positions.pop())
