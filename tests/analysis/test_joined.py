"""Joined plans: requests of equal options become one question with the answers of each alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import GEN_CLOSED, GEN_SUSPENDED, getgeneratorstate
from typing import Any

import pytest

from schemas.activations import ActivationsRequest
from schemas.common import Request, Text
from schemas.equivalence_checks import EquivalenceChecksRequest
from schemas.pairs import AnotherContext, Baseline, WithoutSpans
from schemas.weight_updates import WeightUpdatesRequest
from service.engine import Activations, Model, Plan, Run, drive, joined
from service.engine.readback import READ_BACKS
from service.engine.walk import forward
from tests.analysis.subjects import Subject, plan_of
from tests.analysis.test_packs import close

CONTEXTS = ([3, 50, 9, 120, 77], [8, 2], [60, 61, 62, 63, 64, 65, 66, 67])
QUERIES = ([8, 30], [5], [90, 91, 92])


def requests(**options: Any) -> list[Request]:
    """Requests with contexts and queries of different lengths."""
    return [
        WeightUpdatesRequest(context=context, query=query, **options)
        for context, query in zip(CONTEXTS, QUERIES, strict=True)
    ]


def each_alone(model: Model, runs: Sequence[Run]) -> Sequence[Activations]:
    """Compute runs in forwards of their own, so that equal runs have equal activations."""
    return [one for run in runs for one in forward(model, [run])]


EVERYTHING = ["factors", "bias", "next_tokens"]
OPTIONS: dict[str, dict[str, Any]] = {
    "last": {"positions": "last"},
    "all positions": {"positions": "all", "include": EVERYTHING},
    "sequential": {"positions": "all", "stream": "sequential", "include": EVERYTHING},
    "weights": {"positions": "all", "form": "weights", "include": EVERYTHING},
    "split": {"baseline": "alone", "positions": "all", "include": ["split"], "layers": [1]},
    "probes": {"positions": "all", "probe_queries": [[7], [30, 31]], "include": []},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("model_name", ["gpt2", "gemma3", "qwen3"])
def test_joined_answers_equal_those_of_each_request_alone(
    variant_of: Callable[[str], Subject], model_name: str, name: str
) -> None:
    """Pairs of different lengths have the same answers up to rounding, with one read-back for
    all."""
    model = variant_of(model_name).model
    asked = requests(**OPTIONS[name])
    alone = [drive(model, plan_of(model, request), each_alone) for request in asked]
    packs = 0

    def compute(model: Model, runs: Sequence[Run]) -> Sequence[Activations]:
        nonlocal packs
        before = READ_BACKS.total
        read = each_alone(model, runs)
        packs += READ_BACKS.total - before
        return read

    plan = joined(model, [plan_of(model, request) for request in asked])
    before = READ_BACKS.total
    answers = drive(model, plan, compute)
    assert READ_BACKS.total - before - packs == 1
    assert all(map(close, answers, alone))
    for one, other in zip(answers, alone, strict=True):
        # What no product rounds is equal to the last bit.
        assert [update.mlp_in for update in one.updates] == [u.mlp_in for u in other.updates]


def test_joined_requests_may_have_different_baselines_and_probes(tiny: Model) -> None:
    """What a request compares with, and its probe queries, are its own."""
    baselines: tuple[Baseline, ...] = (
        "matched",
        AnotherContext(context=[4, 5, 6]),
        WithoutSpans(without=[(0, 1)]),
    )
    probes: list[list[Text]] = [[], [[7]], [[7], [9, 10], [11]]]
    asked = [
        WeightUpdatesRequest(
            context=context, query=query, baseline=baseline, probe_queries=given, include=["bias"]
        )
        for context, query, baseline, given in zip(
            CONTEXTS, QUERIES, baselines, probes, strict=True
        )
    ]
    answers = drive(tiny, joined(tiny, [plan_of(tiny, request) for request in asked]))
    alone = [drive(tiny, plan_of(tiny, request)) for request in asked]
    assert all(map(close, answers, alone))


def plans_of(model: Model, asked: Sequence[Request]) -> list[Plan[Any]]:
    """The plan of each request."""
    return [plan_of(model, request) for request in asked]


def test_joined_plan_has_the_work_of_all_and_closes_what_it_replaces(tiny: Model) -> None:
    """The joined plan counts shared rows once and adds up the sizes; the questions that only
    measured their rows are closed."""
    asked = [*requests(include=["factors"]), *requests(include=["factors"])]
    plans = plans_of(tiny, asked)
    whole = joined(tiny, plans)
    assert [getgeneratorstate(one.question) for one in plans] == [GEN_CLOSED] * len(plans)
    assert getgeneratorstate(whole.question) == GEN_SUSPENDED
    assert whole.work.rows == sum(one.work.rows for one in plans[:3])
    assert whole.size.entries == sum(one.size.entries for one in plans)
    assert whole.size.numbers == sum(one.size.numbers for one in plans)
    assert len(drive(tiny, whole)) == len(plans)


@pytest.mark.parametrize(
    "asked",
    [
        [ActivationsRequest(prompts=[[5, 6]]), ActivationsRequest(prompts=[[5, 7]])],
        [
            EquivalenceChecksRequest(context=[3, 50, 9], query=[8, 30], scope="model"),
            EquivalenceChecksRequest(context=[60, 61, 62], query=[8], scope="model"),
        ],
        [*requests(layers=[0]), *requests(layers=[1])],
    ],
    ids=["activations", "model checks", "different options"],
)
def test_plans_without_a_common_batch_are_asked_side_by_side(
    tiny: Model, asked: Sequence[Request]
) -> None:
    """Their answers are those of each alone, and the work counts the rows of later runs too."""
    plans = plans_of(tiny, asked)
    whole = joined(tiny, plans)
    assert whole.work.rows <= sum(one.work.rows for one in plans)
    assert whole.work.rows >= max(one.work.rows for one in plans)
    alone = [drive(tiny, plan_of(tiny, request)) for request in asked]
    for one, other in zip(drive(tiny, whole), alone, strict=True):
        if isinstance(asked[0], EquivalenceChecksRequest):
            assert (one.verdict, len(one.checks)) == (other.verdict, len(other.checks))
        else:
            assert close(one, other)
