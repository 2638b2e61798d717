"""Subjects of the analysis tests: a model, its oracle, and one context and query in every baseline.

The agreement rule (theory.md 9): a captured vector agrees with the oracle's to the relative bound
`CAPTURED`. A quantity formed from a difference v_C − v agrees to that bound times
(‖v_C‖ + ‖v‖)/‖v_C − v‖.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from schemas.activations import ActivationsRequest
from schemas.attributions import AttributionsRequest
from schemas.common import UNSET, Request, Unset
from schemas.completions import CompletionRequest
from schemas.equivalence_checks import EquivalenceChecksRequest
from schemas.pairs import AnotherContext, Baseline, WithoutSpans
from schemas.trajectories import TrajectoriesRequest
from schemas.weight_updates import Update, WeightUpdatesRequest
from service.analysis.activations import plan_activations
from service.analysis.attributions import plan_attributions
from service.analysis.completions import plan_completion
from service.analysis.equivalence_checks import plan_equivalence_checks
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.trajectories import plan_trajectories
from service.analysis.weight_updates import plan_weight_updates
from service.engine import Model, Plan
from tests import oracle as theirs
from tests.oracle import GPT2, Question

CAPTURED = 5e-6

STRIDE = 7919
IDS = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
CONTEXT, OTHER, QUERY = IDS[:9], [20, 21, 22, 23, 24], IDS[9:]

BASELINES = ("matched", "alone", "anchored", "without", "another")
SPANS = ((1, 3), (5, 8))


@dataclass(frozen=True, eq=False)
class Subject:
    """One model in the service and in the oracle.

    Args:
        model: The service's model.
        oracle: The same checkpoint in float64 NumPy.
        asked: The oracle's questions so far, by baseline.
    """

    model: Model
    oracle: GPT2
    asked: dict[str, Question] = field(default_factory=dict)

    def ids(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """Ids spread over the vocabulary."""
        return tuple(1 + STRIDE * seed % (self.model.vocab_size - 1) for seed in seeds)

    @property
    def layers(self) -> tuple[int, ...]:
        """The first, a middle and the last layer."""
        return tuple(sorted({0, self.model.n_layers // 2, self.model.n_layers - 1}))

    def pair(
        self, baseline: str, positions: Literal["last", "all"] | Sequence[int] = "all"
    ) -> Pair:
        """The service's pair of the context and the query with this baseline."""
        kinds: dict[str, Baseline] = {
            "matched": "matched",
            "alone": "alone",
            "anchored": "anchored",
            "without": WithoutSpans(without=list(SPANS)),
            "another": AnotherContext(context=list(self.ids(OTHER))),
        }
        context, query = self.ids(CONTEXT), self.ids(QUERY)
        return resolve_pair(self.model, context, query, kinds[baseline], positions)

    def question(self, baseline: str) -> Question:
        """The oracle's question of the same baseline. It is made once, with its runs."""
        if baseline not in self.asked:
            kinds: dict[str, theirs.Baseline] = {
                "matched": "matched",
                "alone": "alone",
                "anchored": "anchored",
                "without": theirs.Without(SPANS),
                "another": theirs.Another(self.ids(OTHER)),
            }
            self.asked[baseline] = theirs.ask(
                self.oracle,
                self.ids(CONTEXT),
                self.ids(QUERY),
                kinds[baseline],
                anchor=next(iter(self.model.tokenizer.anchor), None),
            )
        return self.asked[baseline]


def baselines_of(model: Model, extent: str = "every") -> tuple[str, ...]:
    """The baselines that a model has (`anchored` needs an anchor), or one of them for "one"."""
    anchored = model.anchor is not None
    if extent == "one":
        return ("anchored" if anchored else "matched",)
    return tuple(name for name in BASELINES if anchored or name != "anchored")


EXTENTS = pytest.mark.parametrize("extent", ["one", pytest.param("every", marks=pytest.mark.slow)])
"""One baseline in the default suite, every one in the slow one."""


PLANS: Mapping[type[Request], Callable[[Model, Any], Plan[Any]]] = {
    ActivationsRequest: plan_activations,
    AttributionsRequest: plan_attributions,
    CompletionRequest: plan_completion,
    EquivalenceChecksRequest: plan_equivalence_checks,
    TrajectoriesRequest: plan_trajectories,
    WeightUpdatesRequest: plan_weight_updates,
}
"""The planning function of each resource, by its request."""


def plan_of(model: Model, request: Request) -> Plan[Any]:
    """The plan of a request to any resource."""
    return PLANS[type(request)](model, request)


def distance(actual: ArrayLike, expected: ArrayLike) -> float:
    """‖actual − expected‖/‖expected‖ in float64, or 0 if the two are equal; infinite if the
    expected value alone is 0."""
    found, truth = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert found.shape == truth.shape
    gap = float(np.linalg.norm(found - truth))
    size = float(np.linalg.norm(truth))
    return gap / size if gap and size else math.inf if gap else 0.0


def factors_of(one: Update[Tensor]) -> tuple[Tensor, Tensor]:
    """The input factor of an update, and the output factors of its first weights side by side."""
    outputs = [weight.output for weight in one.weights if weight.output is not UNSET]
    assert one.input is not UNSET
    assert len(outputs) == len(one.weights)
    return one.input, torch.cat(outputs)


def agree(
    actual: ArrayLike | Unset | None, expected: ArrayLike, bound: float, what: object = ""
) -> None:
    """Assert that two arrays agree within a relative bound."""
    assert actual is not None, what
    assert actual is not UNSET, what
    found = distance(actual, expected)
    assert found <= bound, f"{what}: {found:.2e} > {bound:.2e}"


def near(actual: float | None, expected: float, bound: float, what: object = "") -> None:
    """Assert that two cosines agree within `bound`. One of rounding may be null."""
    if math.isnan(expected) or bound >= 1.0:
        assert actual is None or abs(actual) <= 1.0 + CAPTURED, what
    else:
        assert actual == pytest.approx(expected, abs=bound), what
