"""`POST /v1/equivalence-checks`: the patched baseline run against the run with context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from schemas.equivalence_checks import Check, EquivalenceChecksAnswer, EquivalenceChecksRequest
from service.analysis.equivalence_checks import plan_equivalence_checks
from service.api.bodies import reads
from service.api.exchange import Exchange, plain_exchange
from service.api.openapi import answers, operation
from service.telemetry import Metrics

router = APIRouter()


@router.post(
    "/v1/equivalence-checks",
    **operation(EquivalenceChecksRequest),
    responses=answers(EquivalenceChecksAnswer, tensors=False),
)
async def equivalence_checks(
    body: Annotated[EquivalenceChecksRequest, Depends(reads(EquivalenceChecksRequest))],
    ask: Annotated[Exchange, Depends(plain_exchange)],
) -> Response:
    """Run the equivalence check.

    The baseline run with W + ΔW (and Δh) against the run with context. Each check also reports the
    error of the unpatched run and of controls. A check that holds shows that the algebra and the
    code are right, not that the MLP learns.
    """
    answer = await ask.ask(await ask.plan(plan_equivalence_checks, body))
    count(ask.state.metrics, answer.checks)
    return await ask.answer(answer)


def count(metrics: Metrics, checks: Sequence[Check]) -> None:
    """Export the errors and failures of checks."""
    for check in checks:
        if check.relative_error is not None:
            metrics.equivalence_error.observe(check.relative_error)
        metrics.equivalence_failures.inc(check.verdict == "fails")
