"""The engine in this process: the only module that imports the service's models and questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

import service.checkpoints
from benchmarks.agreement import Disagreement, Update
from benchmarks.server import Request
from schemas.attributions import AttributionsRequest
from schemas.common import UNSET
from schemas.completions import CompletionRequest, Recompute, RecomputedPatch
from schemas.equivalence_checks import Apply
from schemas.pairs import BaselineName
from schemas.trajectories import TrajectoriesRequest
from schemas.weight_updates import Update as UpdateAnswer
from schemas.weight_updates import WeightUpdatesRequest
from service.analysis.attributions import plan_attributions
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.completions import plan_completion
from service.analysis.pairs import resolve_pair
from service.analysis.trajectories import plan_trajectories, trajectories
from service.analysis.weight_updates import plan_weight_updates, weight_updates
from service.api.heads import JSON, SAFETENSORS
from service.api.tensors import serialize
from service.engine import Activations, Model, Plan, Run, Site, drive, load, together
from service.engine.layers import Affine, affine
from service.engine.prefixes import Prefixes
from service.engine.walk import forward

BUNDLED = Path(service.checkpoints.__path__[0]) / "bundled"
PREFIX_CACHE_BYTES = 256 << 20
PLANNED: Mapping[str, tuple[type[BaseModel], Callable[[Model, Any], Plan[Any]]]] = {
    "/v1/attributions": (AttributionsRequest, plan_attributions),
    "/v1/trajectories": (TrajectoriesRequest, plan_trajectories),
    "/v1/weight-updates": (WeightUpdatesRequest, plan_weight_updates),
}
"""Schema and planning function of the resources that `answer` knows."""
__all__ = ["BUNDLED", "Model", "Prefixes"]


def load_model(checkpoint: str, device: torch.device) -> Model:
    """Load a checkpoint as the service does, in float32."""
    return load(checkpoint, revision=None, device=str(device), dtype="float32")


def new_cache(model: Model) -> Prefixes:
    """An empty prefix cache of 256 MiB."""
    return Prefixes(PREFIX_CACHE_BYTES, model.dtype)


def update(
    model: Model,
    layer: int,
    context: str | Sequence[int],
    query: str | Sequence[int],
    baseline: BaselineName = "matched",
    cache: Prefixes | None = None,
) -> Update:
    """One layer's update at the query's last token, from ids to factors."""
    pair = resolve_pair(model, context, query, baseline, "last")
    question = weight_updates(model, [pair], [layer], {"factors"})
    (answer,) = drive(model, question, partial(forward, prefixes=cache))
    return _update(answer.updates[0])


def norms(
    model: Model, context: Sequence[int], query: int, baseline: BaselineName = "matched"
) -> list[float]:
    """‖ΔW‖ of every layer."""
    pair = resolve_pair(model, context, [query], baseline, "last")
    (answer,) = drive(model, weight_updates(model, [pair], range(model.n_layers), ()))
    return [one.norm for one in answer.updates]


def norms_and_checks(model: Model, context: Sequence[int], query: int, apply: Apply) -> None:
    """‖ΔW‖ and the block check of every layer: two questions in one pack.

    Raises:
        Disagreement: A check does not hold.
    """
    pair = resolve_pair(model, context, [query], "matched", "last")
    procedure = Procedure("block", torch.float32, apply=apply, controls=False)
    layers = range(model.n_layers)
    questions = (
        weight_updates(model, [pair], layers, ()),
        block_checks(model, pair, layers, procedure),
    )
    _norms, checks = drive(model, together(*questions))
    if failed := [check.layer for check in checks if not check.holds]:
        raise Disagreement(f"the block checks of layers {failed} do not hold")


def complete(
    model: Model,
    prompt: Sequence[int],
    recompute: Recompute | None,
    count: int,
    note: Callable[[int], None],
) -> None:
    """Complete a prompt greedily.

    Args:
        model: The resident model.
        prompt: Token ids.
        recompute: How a patch is recomputed, whose context is the prompt but its last token; None:
            there is no patch.
        count: Number of tokens.
        note: Receives each token.
    """
    *context, last = prompt
    body = CompletionRequest(
        prompt=list(prompt) if recompute is None else [last],
        patch=recompute and RecomputedPatch(context=context, recompute=recompute),
        max_tokens=count,
        temperature=0.0,
    )
    drive(model, plan_completion(model, body, emit=lambda event: note(*(event.tokens or ()))))


def trajectory_activations(
    model: Model, context: Sequence[int], query: int, *, packed: bool
) -> list[Activations]:
    """Compute the trajectory of every layer, token by token; return each run's activations.

    Args:
        model: The resident model.
        context: Token ids of the context.
        query: Token id of the query.
        packed: Compute all runs in one forward, or each run in a forward of its own.
    """
    pair = resolve_pair(model, context, [query], "matched", "last")
    spans = [(i, i + 1) for i in range(len(context))]
    activations: list[Activations] = []

    def compute(model: Model, runs: Sequence[Run]) -> Sequence[Activations]:
        packs = [runs] if packed else [[run] for run in runs]
        read = [one for pack in packs for one in forward(model, pack)]
        activations.extend(read)
        return read

    drive(model, trajectories(model, pair, range(model.n_layers), spans), compute)
    return activations


def answer(model: Model, request: Request) -> dict[str, Any]:
    """Answer a request of the service; each forward computes all runs that are known by then."""
    schema, make = PLANNED[request.path]
    body = schema.model_validate_json(json.dumps(request.body))
    found: dict[str, Any] = asdict(drive(model, make(model, body)))
    return found


def logits(model: Model, ids: Sequence[int]) -> Tensor:
    """Logits of every row, (rows, vocab)."""
    site, rows = Site(model.n_layers - 1, "resid_post"), range(len(ids))
    (activations,) = forward(model, [Run(ids, rows, {site: rows})])
    return model.logits(activations[site])


def needed_products(
    model: Model, layer: int, rows: int, read: int, *, packed: bool = False
) -> Callable[[], None]:
    """A function that computes only the weight products that one layer's update needs.

    That is the machine's limit: attention's own products, norms, the activation function and data
    movement are excluded. Every product has random matrices of its own, so that none is in the
    processor's cache.

    Args:
        model: Model whose widths to take.
        layer: Layer of the update. Its own attention needs only keys and values of every row.
        rows: Rows of both runs together.
        read: Rows that are read, two for each update.
        packed: Keep the matrices in oneDNN's packed layout, as the engine does.
    """
    d, first = model.d_model, model.blocks[layer]
    queries, keys, mlp = first.queries.width, first.keys_values.width, first.w_in.width
    block = [
        (rows, d, queries + keys),
        (rows, queries, d),
        (rows, d, mlp),
        (rows, model.d_mlp, d),
    ]
    last = [(rows, d, keys), (read, d, queries), (read, queries, d), (read // 2, d, mlp)]
    like, times = model.ends.token_embedding, affine if packed else Affine
    products = [
        (
            like.new_empty(count, d_in).normal_(),
            times(like.new_empty(d_in, d_out).normal_(), like.new_zeros(d_out)),
        )
        for count, d_in, d_out in layer * block + last
    ]

    def multiply() -> None:
        for x, product in products:
            product(x)

    return multiply


def serializers(
    model: Model, context: Sequence[int], query: int
) -> Mapping[str, Callable[[], bytes]]:
    """Functions that write the factors of twelve layers, by format."""
    pair = resolve_pair(model, context, [query], "matched", "last")
    layers = [i % model.n_layers for i in range(12)]
    (answer,) = drive(model, weight_updates(model, [pair], layers, {"factors"}))
    return {
        "JSON": lambda: serialize(answer, JSON, "json"),
        "base64": lambda: serialize(answer, JSON, "base64"),
        "safetensors": lambda: serialize(answer, SAFETENSORS, "json"),
    }


def _update(answer: UpdateAnswer[Tensor]) -> Update:
    outputs = [weight.output for weight in answer.weights if weight.output is not UNSET]
    if answer.input is UNSET or len(outputs) < len(answer.weights):
        raise Disagreement("the answer has no factors")
    n = answer.mlp_in
    cancellation = (n.norm_with_context + n.norm_baseline) / n.norm_difference
    return Update(answer.input, torch.cat(outputs), cancellation)
