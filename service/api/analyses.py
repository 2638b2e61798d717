"""The resources that compute: one row of a table each. Each parses, plans, asks and answers."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import cleandoc
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from schemas.activations import ActivationsAnswer, ActivationsRequest
from schemas.attributions import AttributionsAnswer, AttributionsRequest
from schemas.equivalence_checks import (
    Check,
    EquivalenceChecksAnswer,
    EquivalenceChecksRequest,
    LogitsCheck,
)
from schemas.trajectories import TrajectoriesAnswer, TrajectoriesRequest
from schemas.weight_updates import (
    JointUpdatesAnswer,
    WeightUpdatesAnswer,
    WeightUpdatesRequest,
)
from service.analysis.activations import plan_activations
from service.analysis.attributions import plan_attributions
from service.analysis.equivalence_checks import plan_equivalence_checks
from service.analysis.trajectories import plan_trajectories
from service.analysis.weight_updates import plan_weight_updates
from service.api.bodies import reads
from service.api.exchange import Exchange, exchange, plain_exchange
from service.api.openapi import answers, operation
from service.engine import Model, Plan
from service.telemetry import Metrics


@dataclass(frozen=True)
class Analysis:
    """One resource.

    Args:
        path: Path of the resource.
        request: Model of the request's body.
        answer: Type of the answer.
        plan: Plans the answer to a request.
        text: Summary and description of the operation in the OpenAPI document.
        tensors: Whether the answer holds tensors, and so may be a safetensors file.
        prompts: Field of the body whose prompts are limited in number; empty: none.
        count: Exports what an answer found to the metrics.
    """

    path: str
    request: type[BaseModel]
    answer: Any
    plan: Callable[[Model, Any], Plan[Any]]
    text: str
    tensors: bool = False
    prompts: str = ""
    count: Callable[[Metrics, Any], None] = lambda _metrics, _answer: None


def count_checks(metrics: Metrics, answer: EquivalenceChecksAnswer) -> None:
    """Export the errors and failures of checks, those of the logits included."""
    checks: list[Check | LogitsCheck] = [*answer.checks, *(answer.logits or ())]
    for check in checks:
        if check.relative_error is not None:
            metrics.equivalence_error.observe(check.relative_error)
        metrics.equivalence_failures.inc(check.verdict == "fails")


ANALYSES = (
    Analysis(
        "/v1/activations",
        ActivationsRequest,
        ActivationsAnswer,
        plan_activations,
        """Capture activations.

        The vectors of hook points, layers and positions of one or several prompts, each a run of
        its own.""",
        tensors=True,
        prompts="prompts",
    ),
    Analysis(
        "/v1/weight-updates",
        WeightUpdatesRequest,
        WeightUpdatesAnswer | JointUpdatesAnswer,
        plan_weight_updates,
        """Summarise the implicit weight updates.

        Returns, for each layer and query position, the rank-1 update ΔW of the MLP's first weights
        and the shift Δh of the block's output, with which the baseline run reads as the run with
        context does (arXiv 2507.16003, 2512.11255). The answer has norms, cosines and factors; a
        gated MLP has two first weights with one input factor. With `joint`, it has one patch of
        all MLP weights for all positions of a layer.""",
        tensors=True,
        prompts="probe_queries",
    ),
    Analysis(
        "/v1/equivalence-checks",
        EquivalenceChecksRequest,
        EquivalenceChecksAnswer,
        plan_equivalence_checks,
        """Run the equivalence check.

        The baseline run with W + ΔW (and Δh) against the run with context; in scope `model` with
        every layer patched in sequence (arXiv 2511.17864). Each check also reports the error of the
        unpatched run and of controls. A check that holds shows that the algebra and the code are
        right, not that the MLP learns.""",
        count=count_checks,
    ),
    Analysis(
        "/v1/trajectories",
        TrajectoriesRequest,
        TrajectoriesAnswer,
        plan_trajectories,
        """Follow ΔW as the context is read, token by token or span by span.

        Each step is one step of gradient descent on a loss that is linear in W, with step size η
        (arXiv 2507.16003). That form restates a telescoping sum: the steps add up to the ΔW of the
        whole context.""",
    ),
    Analysis(
        "/v1/attributions",
        AttributionsRequest,
        AttributionsAnswer,
        plan_attributions,
        """Attribute ΔW to spans of the context, by default to sentences.

        Each span alone and each span left out, its share of the whole, and the effect of the spans'
        order. Spans interact, so shares need not add up to 1.""",
    ),
)


def _add(analysis: Analysis) -> None:
    """Add the route of a resource."""
    exchanged = exchange if analysis.tensors else plain_exchange

    # The annotations name local values, so this module does not postpone annotations.
    async def handle(
        body: Annotated[Any, Depends(reads(analysis.request))],
        ask: Annotated[Exchange, Depends(exchanged)],
    ) -> Response:
        if analysis.prompts:
            ask.check_count(getattr(body, analysis.prompts), analysis.prompts)
        answer = await ask.ask(await ask.plan(analysis.plan, body))
        analysis.count(ask.state.metrics, answer)
        return await ask.answer(answer)

    router.add_api_route(
        analysis.path,
        handle,
        methods=["POST"],
        name=analysis.path.removeprefix("/v1/").replace("-", "_"),
        description=cleandoc(analysis.text),
        responses=answers(analysis.answer, tensors=analysis.tensors),
        **operation(analysis.request),
    )


router = APIRouter()
for _analysis in ANALYSES:
    _add(_analysis)
