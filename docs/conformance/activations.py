"""Compare captured vectors with the float64 oracle, and measure the effect of planted errors.

The relative error of a row is ‖captured − oracle‖/‖oracle‖. A hook point has the error of its worst
row in the layer where that is the largest share of its bound. An effect is measured in the oracle
alone: the relative distance between the right vector and the one that a planted error would return,
at the row and layer where it is least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from docs.conformance.subjects import Subject, rounded
from schemas.common import DType
from service.engine import Model, Run, Site, load
from service.engine.model import DTYPES
from service.engine.walk import forward
from service.errors import CannotLoad, NonFiniteActivation
from tests.oracle.checkpoint import Array
from tests.oracle.decoder import Decoder, Trace

Column = Literal["float32", "float64", "bfloat16", "float16"]
"""How the runs are computed: in a resident dtype, or in float64 from float32 weights."""
Status = Literal["SUPPORTED", "DEGRADED", "UNSUPPORTED"]
COLUMNS: Mapping[Column, DType] = {
    "float32": "float32",
    "float64": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}
"""The dtype of the resident weights of each column."""
HALF = 16.0
"""Multiple of the machine epsilon that bounds runs in half precision."""
BOUNDS: Mapping[Column, float] = {
    "float32": 5e-6,
    "float64": 1e-12,
    "bfloat16": HALF * torch.finfo(torch.bfloat16).eps,
    "float16": HALF * torch.finfo(torch.float16).eps,
}
"""Largest relative error of a row."""
PEER = 4.0
"""Multiple of transformers' own error that bounds float32 on trained weights, if it is larger."""
CLEAR = 10.0
"""Number of bounds that a planted error must exceed, so that it cannot pass for rounding."""
LOGITS = "logits"
Place = tuple[int, str]
"""A layer and its hook point; the logits come after the last layer."""
Effects = Mapping[Place, Mapping[str, float]]
"""The least effect of each planted error; absent where a planted error does not apply."""
PLANTED = ("token off", "token changed", "layer off", "site off")


@dataclass(frozen=True)
class Measured:
    """A hook point in the layer where the error is the largest share of its bound.

    Args:
        error: Relative error of the worst row.
        bound: The bound.
        within: Whether every row of every layer is within its bound.
        clearance: Least ratio of the effect of a planted error to the bound in any layer.
        peer: Relative error of the worst row in transformers, where that is a part of the bound.
    """

    error: float
    bound: float
    within: bool
    clearance: float
    peer: float | None = None


@dataclass(frozen=True)
class Conformance:
    """The measured errors of one checkpoint on one device.

    Args:
        subject: The checkpoint.
        device: The device of the model.
        columns: The hook points and the logits of each column.
        refused: The reason for each column that is not served.
        effects: The least effect of each planted error in any layer, by hook point.
    """

    subject: Subject
    device: str
    columns: Mapping[Column, Mapping[str, Measured]]
    refused: Mapping[Column, str]
    effects: Mapping[str, Mapping[str, float]]

    def status(self, column: Column, point: str) -> Status:
        """The status of a hook point in a column."""
        found = self.columns.get(column, {}).get(point)
        if found is None:
            return "UNSUPPORTED"
        return status(column, found)


def status(column: Column, found: Measured) -> Status:
    """The status of a measured entry."""
    if not found.within:
        return "UNSUPPORTED"
    exact = column in ("float32", "float64") and found.clearance >= CLEAR
    return "SUPPORTED" if exact else "DEGRADED"


def measure(subject: Subject, device: str, work: Path) -> Conformance:
    """Measure a checkpoint in every column.

    Args:
        subject: The checkpoint.
        device: The device of the model.
        work: An existing folder for copies with rounded weights.
    """
    columns: dict[Column, Mapping[str, Measured]] = {}
    refused: dict[Column, str] = {}
    effects: Effects = {}
    for dtype in DTYPES:
        folder = subject.folder
        if dtype != "float32":
            folder = rounded(folder, dtype, work / f"{subject.name}-{dtype}")
        served: list[Column] = [column for column, stored in COLUMNS.items() if stored == dtype]
        try:
            model = load(str(folder), revision=None, device=device, dtype=dtype)
            oracle = Decoder(folder)
            truth = oracle.run(subject.ids)
            if dtype == "float32":
                effects = planted(oracle, subject.ids, truth)
            peer = None
            if subject.kind == "trained" and dtype == "float32":
                peer = transformers_errors(subject, model, truth)
            for column in served:
                columns[column] = errors(subject, model, truth, column, effects, peer)
        except (CannotLoad, NonFiniteActivation) as reason:
            detail = getattr(reason, "detail", str(reason))
            refused |= dict.fromkeys(served, detail.rpartition("cannot be served: ")[2])
    return Conformance(subject, device, columns, refused, least(effects))


def errors(
    subject: Subject,
    model: Model,
    truth: Trace,
    column: Column,
    effects: Effects,
    peer: Mapping[Place, float] | None = None,
) -> dict[str, Measured]:
    """Measure every hook point of every layer, and the logits, in one column.

    Args:
        subject: The checkpoint.
        model: The resident model.
        truth: The oracle's run.
        column: How the run is computed.
        effects: The effects of planted errors.
        peer: Largest relative error of transformers' own float32 forward.
    """
    dtype = torch.float64 if column == "float64" else model.dtype
    rows = range(len(subject.ids))
    sites = [Site(layer, point) for layer in range(model.n_layers) for point in model.hook_points]
    with torch.inference_mode():
        (read,) = forward(model, [Run(subject.ids, rows, dict.fromkeys(sites, rows), dtype)])
        captured: dict[Place, Tensor] = {(site.layer, site.point): read[site] for site in sites}
        last = read[Site(model.n_layers - 1, "resid_post")]
        captured[model.n_layers, LOGITS] = model.logits(last)
    measured: dict[str, Measured] = {}
    for place, values in captured.items():
        expected = truth.logits if place[1] == LOGITS else truth[place]
        error = float(distances(_array(values), expected).max())
        theirs = peer.get(place) if peer is not None and column == "float32" else None
        bound = max(BOUNDS[column], PEER * (theirs or 0.0))
        clearance = min(effects[place].values()) / bound
        # A NaN compares false, so it is not within its bound.
        here = Measured(error, bound, error <= bound, clearance, theirs)
        measured[place[1]] = worse(measured.get(place[1], here), here)
    return measured


def worse(one: Measured, other: Measured) -> Measured:
    """The worst of two measurements of a hook point."""
    return replace(
        max((one, other), key=lambda each: each.error / each.bound),
        within=one.within and other.within,
        clearance=min(one.clearance, other.clearance),
    )


def planted(oracle: Decoder, ids: Sequence[int], truth: Trace) -> Effects:
    """The least effect of each planted error at each hook point of each layer, and on the logits.

    `token off`: the vector of the token before. `token changed`: the token before is replaced;
    vectors of the first layer that depend on no other token are left out. `layer off`: the layer
    before or after; for the logits, the last layer is left out. `site off`: the nearest of the
    block's other hook points of this width; for the logits, the stream before the last MLP.
    """
    count = oracle.n_layers
    effects: dict[Place, dict[str, float]] = {}

    def note(place: Place, error: str, wrong: Array, right: Array) -> None:
        found = effects.setdefault(place, {})
        found[error] = min(found.get(error, np.inf), float(distances(wrong, right).min()))

    changed = [_with_another_token(oracle, ids, row) for row in range(1, len(ids))]
    for layer in range(count):
        for point in oracle.hook_points:
            place = (layer, point)
            right = truth[place]
            note(place, "token off", right[:-1], right[1:])
            wrong = np.concatenate([trace[place] for trace in changed])
            if layer > 0 or distances(wrong, right[1:]).max() > BOUNDS["float64"]:
                note(place, "token changed", wrong, right[1:])
            for other in {layer - 1, layer + 1} & set(range(count)):
                note(place, "layer off", truth[other, point], right)
            for name in oracle.hook_points:
                if name != point and truth[layer, name].shape == right.shape:
                    note(place, "site off", truth[layer, name], right)
    place, logits = (count, LOGITS), truth.logits
    note(place, "token off", logits[:-1], logits[1:])
    note(place, "token changed", np.concatenate([one.logits for one in changed]), logits[1:])
    for error, stream in (("layer off", "resid_pre"), ("site off", "resid_mid")):
        wrong = oracle.final_norm(truth[count - 1, stream]) @ oracle.unembedding.T
        note(place, error, wrong, logits)
    return effects


def least(effects: Effects) -> dict[str, dict[str, float]]:
    """The least effect of each planted error in any layer, by hook point."""
    found: dict[str, dict[str, float]] = {}
    for (_, point), by_error in effects.items():
        known = found.setdefault(point, {})
        for error, effect in by_error.items():
            known[error] = min(known.get(error, effect), effect)
    return found


def _with_another_token(oracle: Decoder, ids: Sequence[int], row: int) -> Trace:
    """The last row of the prompt up to `row`, with another token of the prompt before it."""
    before = ids[row - 1]
    another = next(one for one in (*ids[row + 1 :], *ids) if one not in (before, ids[row]))
    return oracle.run([*ids[: row - 1], another, ids[row]]).last_rows(1)


def transformers_errors(subject: Subject, model: Model, truth: Trace) -> dict[Place, float]:
    """The largest relative error of transformers' own float32 forward at each layer and point."""
    theirs = AutoModelForCausalLM.from_pretrained(
        subject.folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    seen: dict[Place, float] = {}

    def hook(key: Place, side: str) -> Callable[..., None]:
        def compare(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            read = (args[0] if args else kwargs["hidden_states"]) if side == "input" else output
            values = _array(read[0] if isinstance(read, tuple) else read)
            rows = values.reshape(-1, values.shape[-1])
            seen[key] = float(distances(rows, truth[key]).max())

        return compare

    with ExitStack() as hooks, torch.inference_mode():
        for layer, point, module, side in _modules(model):
            hooked = theirs.get_submodule(module).register_forward_hook(
                hook((layer, point), side), with_kwargs=True
            )
            hooks.callback(hooked.remove)
        logits = theirs(torch.tensor([subject.ids])).logits[0]
    seen[model.n_layers, LOGITS] = float(distances(_array(logits), truth.logits).max())
    return seen


def _modules(model: Model) -> Iterator[tuple[int, str, str, str]]:
    """Layer, hook point, module and side of each hook point that a module of transformers holds."""
    for point in model.hook_points:
        if (found := model.module_path(point)) is not None:
            for layer in range(model.n_layers):
                yield layer, point, found[0].format(layer=layer), found[1]


def distances(actual: Array, expected: Array) -> Array:
    """‖actual − expected‖/‖expected‖ of each row (rows, width)."""
    gap: Array = np.linalg.norm(actual - expected, axis=-1)
    ratio: Array = gap / np.linalg.norm(expected, axis=-1)
    return ratio


def _array(values: Tensor) -> Array:
    array: Array = values.double().cpu().numpy()
    return array
