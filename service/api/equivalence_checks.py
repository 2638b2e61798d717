"""`POST /v1/equivalence-checks`: the patched baseline run against the run with context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Depends, Response

from schemas.equivalence_checks import EquivalenceChecksAnswer, EquivalenceChecksRequest
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.inputs import resolve_layers
from service.analysis.model_checks import model_checks
from service.analysis.pairs import Pair, Stream
from service.analysis.verdicts import Check, worst
from service.api.bodies import reads
from service.api.exchange import Exchange, plain_exchange
from service.api.openapi import answers, operation
from service.api.pairs import pair_rows, refuse, repeated, resolved_pair
from service.telemetry import Metrics

router = APIRouter()


@router.post(
    "/v1/equivalence-checks",
    **operation(EquivalenceChecksRequest),
    responses=answers(EquivalenceChecksAnswer, tensors=False),
)
async def checks(
    body: Annotated[EquivalenceChecksRequest, Depends(reads(EquivalenceChecksRequest))],
    ask: Annotated[Exchange, Depends(plain_exchange)],
) -> Response:
    """Run the equivalence check.

    The baseline run with W + ΔW (and Δh) against the run with context, with the error of the
    unpatched run and controls beside it. A check that holds proves the plumbing and the algebra,
    not a mechanism.
    """
    layers = resolve_layers(ask.model, body.layers)
    stream = checked_stream(body)
    pair = await resolved_pair(ask, body)
    if body.joint:
        refuse(len(pair.positions) < 2, "`joint` needs two positions or more", "joint")
        refuse(stream != "free", "`joint` needs the free stream", "joint")
    # The logits of a position take about as much as three checks.
    entries = len(layers) + (3 if body.scope == "model" else 0)
    ask.expect(entries * len(pair.positions), len(pair.context) + len(pair.query))
    dtype = torch.float64 if body.precision == "float64" else torch.float32
    content: dict[str, Any] = {}
    if body.scope == "model":
        procedure = Procedure(
            dtype=dtype, tolerance=body.tolerance, apply=body.apply, controls=body.controls
        )
        every = range(ask.model.n_layers)
        question = model_checks(ask.model, pair, layers, procedure)
        found, logits = await ask.ask(question, rows(pair, body, stream), every, dtype)
        content["logits"] = logits
        verdicts = [check.verdict for check in found] + [check.verdict for check in logits]
    else:
        procedure = Procedure(
            body.scope, dtype, stream, body.tolerance, body.apply, body.controls, body.joint
        )
        found = await ask.ask(
            block_checks(ask.model, pair, layers, procedure),
            rows(pair, body, stream),
            layers,
            dtype,
        )
        verdicts = [check.verdict for check in found]
    count(ask.state.metrics, found)
    verdict = worst(verdicts)
    return await ask.answer(
        {
            **repeated(ask, body, pair, stream),
            "holds": verdict == "holds",
            "verdict": verdict,
            "scope": body.scope,
            "precision": str(dtype).removeprefix("torch."),
            "apply": body.apply,
            "joint": body.joint,
            "checks": found,
            **content,
        }
    )


def checked_stream(body: EquivalenceChecksRequest) -> Stream:
    """The stream of a check; scope `model` implies `sequential`.

    Raises:
        NotSupported: It asks for `free` all the same.
    """
    if body.scope != "model":
        return body.stream
    asked = "stream" in body.model_fields_set and body.stream == "free"
    refuse(asked, "scope `model` is the sequential stream", "stream")
    return "sequential"


def rows(pair: Pair, body: EquivalenceChecksRequest, stream: Stream) -> int:
    """Rows of all runs of a check, before any is shared."""
    count = pair_rows(pair, stream)
    if body.scope == "model":
        again = len(pair.positions) if body.controls else 0
        return count + (1 + again) * len(pair.baseline.ids)
    return count + (len(pair.with_context.ids) if body.controls else 0)


def count(metrics: Metrics, checks: Sequence[Check]) -> None:
    """Export what the checks found."""
    for check in checks:
        if check.relative_error is not None:
            metrics.equivalence_error.observe(check.relative_error)
        metrics.equivalence_failures.inc(check.verdict == "fails")
