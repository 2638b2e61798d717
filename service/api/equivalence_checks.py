"""`POST /v1/equivalence-checks`: the baseline run with patched weights against the run with
context."""

from __future__ import annotations

from typing import Annotated

import torch
from fastapi import APIRouter, Depends, Response

from schemas.equivalence_checks import EquivalenceChecksAnswer, EquivalenceChecksRequest
from service.analysis.choices import resolve_layers
from service.analysis.equivalence import Check, equivalence_checks, worst
from service.api.asking import Asking, asking_plainly
from service.api.bodies import reads
from service.api.operations import answers, operation
from service.api.pairs import repeated, resolved_pair
from service.api.tensors import check_size
from service.errors import NotSupported
from service.telemetry import Metrics

router = APIRouter()


@router.post(
    "/v1/equivalence-checks",
    **operation(EquivalenceChecksRequest),
    responses=answers(EquivalenceChecksAnswer, tensors=False),
)
async def checks(
    body: Annotated[EquivalenceChecksRequest, Depends(reads(EquivalenceChecksRequest))],
    ask: Annotated[Asking, Depends(asking_plainly)],
) -> Response:
    """Run the equivalence check.

    The baseline run with W + ΔW (and Δh) against the run with context, with the error of the
    unpatched run and controls beside it. A check that holds proves the plumbing and the algebra,
    not a mechanism.
    """
    if body.scope == "model":
        raise NotSupported("scope `model` is not served yet", at=("scope",))
    layers = resolve_layers(ask.model, body.layers)
    pair = await resolved_pair(ask, body)
    check_size(
        {},
        len(layers) * len(pair.positions) + len(pair.context) + len(pair.query),
        ask.media,
        "json",
        ask.state.settings.max_response_bytes,
    )
    dtype = torch.float64 if body.precision == "float64" else torch.float32
    question = equivalence_checks(
        ask.model,
        pair,
        layers,
        body.scope,
        dtype,
        body.tolerance,
        body.apply,
        body.controls,
    )
    rows = pair.rows + (len(pair.with_context.ids) if body.controls else 0)
    found = await ask.ask(question, rows)
    count(ask.state.metrics, found)
    verdict = worst(found)
    return await ask.answer(
        {
            **repeated(ask, body, pair),
            "holds": verdict == "holds",
            "verdict": verdict,
            "scope": body.scope,
            "precision": str(dtype).removeprefix("torch."),
            "apply": body.apply,
            "checks": found,
        }
    )


def count(metrics: Metrics, checks: tuple[Check, ...]) -> None:
    """Export what the checks found."""
    for check in checks:
        if check.relative_error is not None:
            metrics.equivalence_error.observe(check.relative_error)
        metrics.equivalence_failures.inc(check.verdict == "fails")
