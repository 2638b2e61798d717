"""Check an adapter's folder with PEFT itself, for commands and tests.

The check holds two more copies of the model in memory, so the service does not run it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor
from transformers import AutoModelForCausalLM

from schemas.adapters import StaticAdapterRequest, TokenAdapterRequest
from service.adapters.peft import from_peft
from service.adapters.store import CONFIG, WEIGHTS
from service.analysis.adapters.made import token_pair
from service.analysis.pairs import Prompt, resolve_pair
from service.engine import Fixed, Model, Site, load
from service.engine.folder import locate
from service.engine.walk import forward
from service.errors import OtherWeights

STATIC_QUERIES = 4
"""Number of fitted queries on which a static adapter is compared."""


@dataclass(frozen=True)
class PeftErrors:
    """Relative errors of logits, ‖actual − expected‖/‖expected‖, the largest of all rows.

    Args:
        loaded: PEFT with the adapter. A token adapter is compared with transformers' run with
            context, a static one with deltaw's own run under the update.
        merged: Likewise, with the adapter merged into the weights. None: PEFT cannot merge it.
        without: Without the adapter, the control.
    """

    loaded: float
    merged: float | None
    without: float


@dataclass(frozen=True, eq=False)
class Case:
    """A run in which the adapter is used, the rows to compare, and their logits."""

    prompt: Prompt
    rows: Sequence[int]
    expected: Tensor


def verify_peft(
    name: str,
    revision: str | None,
    folder: Path,
    body: TokenAdapterRequest | StaticAdapterRequest,
    weights_digest: str,
) -> PeftErrors:
    """Load a checkpoint and an adapter with transformers and PEFT, and compare the logits.

    Args:
        name: The checkpoint: `bundled`, a folder, or a hub id.
        revision: Branch, tag or commit of a hub id.
        folder: Folder with the files that PEFT reads.
        body: The request that made the adapter.
        weights_digest: The digest of the weights that the adapter was made for.

    Raises:
        CannotLoad: The checkpoint cannot be found or read.
        OtherWeights: The adapter was made for other weights than the checkpoint's.
        ModuleNotFoundError: PEFT is not installed.
    """
    from peft import PeftModel  # the service does not need it

    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        # PEFT reads a property that transformers deprecates, and warns of a bias that a module of
        # the base model lacks.
        warnings.simplefilter("ignore")
        model = load(name, revision=revision, device="cpu", dtype="float32")
        if model.weights_digest != weights_digest:
            raise OtherWeights(f"{name!r} has other weights than the adapter was made for.")
        theirs = AutoModelForCausalLM.from_pretrained(
            locate(name, revision)[0],
            dtype=torch.float32,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
        ).eval()
        if isinstance(body, TokenAdapterRequest):
            cases = [_of_token(model, theirs, body)]
        else:
            cases = _of_static(model, folder, body)
        without = _worst(theirs, cases)
        wrapped = PeftModel.from_pretrained(theirs, str(folder)).eval()
        loaded = _worst(wrapped, cases)
        try:
            merged = _worst(wrapped.merge_and_unload(), cases)
        except RuntimeError:
            merged = None
        return PeftErrors(loaded, merged, without)


def _of_token(model: Model, theirs: Any, body: TokenAdapterRequest) -> Case:
    pair = token_pair(model, body)
    whole = pair.with_context
    expected = _logits(theirs, whole)[_rows(whole, pair.positions)]
    return Case(pair.baseline, _rows(pair.baseline, pair.positions), expected)


def _of_static(model: Model, folder: Path, body: StaticAdapterRequest) -> list[Case]:
    config = json.loads((folder / CONFIG).read_text())
    updates = from_peft(model, load_tensors((folder / WEIGHTS).read_bytes()), config)
    site = Site(model.n_layers - 1, "resid_post")
    cases = []
    for query in body.queries[:STATIC_QUERIES]:
        pair = resolve_pair(model, body.context, query, body.baseline, "last")
        run = replace(pair.baseline.run({site: pair.positions}), patch=Fixed(updates))
        (read,) = forward(model, [run])
        rows = _rows(pair.baseline, pair.positions)
        cases.append(Case(pair.baseline, rows, model.logits(read[site])))
    return cases


def _rows(prompt: Prompt, positions: Sequence[int]) -> list[int]:
    """Rows of a run at positions of its query."""
    first = len(prompt.ids) - prompt.query_length
    return [first + position for position in positions]


def _worst(theirs: Any, cases: Sequence[Case]) -> float:
    """The largest relative error of all rows of all cases."""
    errors = []
    for case in cases:
        gap = _logits(theirs, case.prompt)[list(case.rows)].double() - case.expected.double()
        errors.append(gap.norm(dim=-1) / case.expected.double().norm(dim=-1))
    return float(torch.cat(errors).max())


def _logits(theirs: Any, prompt: Prompt) -> Tensor:
    """Logits of transformers at each row, (rows, vocab)."""
    positions = torch.tensor([int(position) for position in prompt.positions])
    found: Tensor = theirs(
        torch.tensor([[int(token) for token in prompt.ids]]),
        attention_mask=_masks(theirs.config, positions),
        position_ids=positions[None],
        use_cache=False,
    ).logits[0]
    return found


def _masks(config: Any, positions: Tensor) -> Any:
    """Attention masks to add to the scores, (1, 1, rows, rows). A model with several types of layer
    gets a mapping with a mask for each type.

    Without a mask, transformers treats gaps in the positions as borders between texts, and counts a
    sliding window in rows, not in positions.
    """
    causal = torch.ones(len(positions), len(positions)).tril().bool()
    window = getattr(config, "sliding_window", None)
    near = causal if window is None else causal & (positions[:, None] - positions < window)
    full, sliding = (
        torch.zeros(sees.shape).masked_fill(~sees, -torch.inf)[None, None]
        for sees in (causal, near)
    )
    if getattr(config, "layer_types", None):
        return {"full_attention": full, "sliding_attention": sliding}
    return sliding
