"""The resources that compute: one row of a table each. Each parses, plans, asks and answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter

from schemas.activations import ActivationsAnswer, ActivationsRequest
from schemas.attributions import AttributionsAnswer, AttributionsRequest
from schemas.equivalence_checks import (
    Check,
    EquivalenceChecksAnswer,
    EquivalenceChecksRequest,
    LogitsCheck,
)
from schemas.trajectories import TrajectoriesAnswer, TrajectoriesRequest
from schemas.weight_updates import WeightUpdatesAnswer, WeightUpdatesRequest
from service.analysis.activations import plan_activations
from service.analysis.attributions import plan_attributions
from service.analysis.equivalence_checks import plan_equivalence_checks
from service.analysis.trajectories import plan_trajectories
from service.analysis.weight_updates import plan_weight_updates
from service.api.exchange import Exchange, Prepare, Resource
from service.api.resources import add
from service.engine import Model, Plan
from service.telemetry import Metrics


def count_checks(metrics: Metrics, answer: EquivalenceChecksAnswer) -> None:
    """Export the errors and failures of checks, those of the logits included."""
    checks: list[Check | LogitsCheck] = [*answer.checks, *(answer.logits or ())]
    for check in checks:
        if check.relative_error is not None:
            metrics.equivalence_error.observe(check.relative_error)
        metrics.equivalence_failures.inc(check.verdict == "fails")


def planned(plan: Callable[[Model, Any], Plan[Any]], limited: str = "") -> Prepare:
    """The preparation of a resource that asks the engine.

    Args:
        plan: Plans the answer to a body.
        limited: Field of the body whose prompts are limited in number; empty: none.
    """

    def prepare(ask: Exchange, body: Any) -> Plan[Any]:
        if limited:
            ask.check_count(getattr(body, limited), limited)
        return ask.checked(plan(ask.model, body), body)

    return prepare


def prepare_checks(ask: Exchange, body: EquivalenceChecksRequest) -> Plan[EquivalenceChecksAnswer]:
    """The plan of an equivalence check, with the adapter that its patch names."""
    patch = body.patch
    adapter = None if patch is None else ask.state.adapters.load(ask.model, patch.adapter)
    return ask.checked(plan_equivalence_checks(ask.model, body, adapter), body)


ANALYSES = (
    Resource(
        "/v1/activations",
        ActivationsRequest,
        ActivationsAnswer,
        planned(plan_activations, "prompts"),
        """Capture activations.

        The vectors of hook points, layers and positions of one or several prompts, each a run of
        its own.""",
        tensors=True,
        prompts=("prompts",),
    ),
    Resource(
        "/v1/weight-updates",
        WeightUpdatesRequest,
        WeightUpdatesAnswer,
        planned(plan_weight_updates, "probe_queries"),
        """Summarise the implicit weight updates.

        Returns, for each layer and query position, the rank-1 update ΔW of the MLP's first weights
        and the shift Δh of the block's output, with which the baseline run reads as the run with
        context does (arXiv 2507.16003, 2512.11255). The answer has norms, cosines and factors; a
        gated MLP has two first weights with one input factor.""",
        tensors=True,
    ),
    Resource(
        "/v1/equivalence-checks",
        EquivalenceChecksRequest,
        EquivalenceChecksAnswer,
        prepare_checks,
        """Run the equivalence check.

        The baseline run with W + ΔW (and Δh) against the run with context; in scope `model` with
        every layer patched in sequence (arXiv 2511.17864). Each check also reports the error of the
        unpatched run and of controls. A check that holds shows that the algebra and the code are
        right, not that the MLP learns.""",
        problems=("unknown_adapter", "other_weights"),
        count=count_checks,
    ),
    Resource(
        "/v1/trajectories",
        TrajectoriesRequest,
        TrajectoriesAnswer,
        planned(plan_trajectories),
        """Follow ΔW as the context is read, token by token or span by span.

        Each step is one step of gradient descent on a loss that is linear in W, with step size η
        (arXiv 2507.16003). That form restates a telescoping sum: the steps add up to the ΔW of the
        whole context.""",
    ),
    Resource(
        "/v1/attributions",
        AttributionsRequest,
        AttributionsAnswer,
        planned(plan_attributions),
        """Attribute ΔW to spans of the context, by default to sentences.

        Each span alone and each span left out, its share of the whole, and the effect of the spans'
        order. Spans interact, so shares need not add up to 1.""",
    ),
)


router = APIRouter()
for _analysis in ANALYSES:
    add(router, _analysis)
