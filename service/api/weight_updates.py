"""`POST /v1/weight-updates`: what a context does to each layer, as norms and factors."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from schemas.weight_updates import WeightUpdatesAnswer, WeightUpdatesRequest
from service.analysis.inputs import resolve_layers
from service.analysis.joints import joint_updates
from service.analysis.next_tokens import next_tokens
from service.analysis.pairs import Pair
from service.analysis.together import together
from service.analysis.weight_updates import weight_updates
from service.api.bodies import reads
from service.api.exchange import Exchange, exchange
from service.api.openapi import answers, operation
from service.api.pairs import pair_rows, probe_pairs, refuse, repeated, resolved_pair
from service.engine import Model

router = APIRouter()


@router.post(
    "/v1/weight-updates", **operation(WeightUpdatesRequest), responses=answers(WeightUpdatesAnswer)
)
async def updates(
    body: Annotated[WeightUpdatesRequest, Depends(reads(WeightUpdatesRequest))],
    ask: Annotated[Exchange, Depends(exchange)],
) -> Response:
    """Summarise the implicit weight updates.

    For each layer and query position the rank-1 update ΔW of the MLP's first weight, and Δh of the
    block's output, that make the baseline run read as the run with context does: norms, cosines and
    factors. With `joint` one patch of both MLP weights for all positions of a layer.
    """
    layers = resolve_layers(ask.model, body.layers)
    pair = await resolved_pair(ask, body)
    check_combination(body, pair)
    ask.count_prompts(body.probe_queries, "probe_queries")
    probes = await ask.tokenized(probe_pairs, ask.model, body, pair, body.probe_queries)
    entries = len(layers) * (1 if body.joint else len(pair.positions))
    ask.expect(
        entries * (1 + len(probes)) + len(pair.positions),
        len(pair.context) + len(pair.query),
        entries * numbers(ask.model, body, len(pair.positions)),
        body.encoding,
    )
    matched = len(pair.query) if "split" in body.include else 0
    rows = pair_rows(pair, body.stream) + matched + sum(probe.rows for probe in probes)
    reached = range(ask.model.n_layers) if "next_tokens" in body.include else layers
    content: dict[str, Any]
    if body.joint:
        found, likely = await ask.ask(
            together(
                joint_updates(ask.model, pair, layers, body.include),
                next_tokens(ask.model, pair, "next_tokens" in body.include),
            ),
            rows,
            reached,
        )
        content = {"updates": found}
    else:
        question = weight_updates(
            ask.model, pair, layers, frozenset(body.include), body.stream, probes
        )
        summary = await ask.ask(question, rows, reached)
        content, likely = {"updates": summary.updates}, summary.next_tokens
    if likely is not None:
        content["next_tokens"] = likely
    return await ask.answer(repeated(ask, body, pair, body.stream) | content)


def check_combination(body: WeightUpdatesRequest, pair: Pair) -> None:
    """Refuse what is not defined together.

    Raises:
        NotSupported: `split` without `alone` or free stream, or `joint` with what needs one patch a
            position, or with a single one.
    """
    if "split" in body.include:
        refuse(body.baseline != "alone", "`split` needs the baseline `alone`", "include")
        refuse(body.stream != "free", "`split` needs the free stream", "include")
    sequential_probes = bool(body.probe_queries) and body.stream != "free"
    refuse(sequential_probes, "`probe_queries` needs the free stream", "probe_queries")
    if body.joint:
        refuse(len(pair.positions) < 2, "`joint` needs two positions or more", "joint")
        refuse(body.stream != "free", "`joint` needs the free stream", "joint")
        alone = {"bias", "split"} & set(body.include)
        refuse(bool(alone), "`joint` has one patch for all: no bias, no split", "include")
        refuse(bool(body.probe_queries), "`joint` has no single update to reuse", "probe_queries")


def numbers(model: Model, body: WeightUpdatesRequest, positions: int) -> int:
    """How many numbers the tensors of one entry hold."""
    factors = model.d_model + model.d_mlp
    if body.joint:
        return 2 * positions * factors if "factors" in body.include else 0
    count = factors if "factors" in body.include else 0
    count += model.d_model if "bias" in body.include else 0
    return count + (2 * factors if "split" in body.include else 0)
