"""Requests are parsed strictly and are immutable. Fields keep their descriptions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from schemas.activations import ActivationsRequest
from schemas.attributions import AttributionsRequest
from schemas.common import Answer, Token, adapter
from schemas.completions import CompletionRequest
from schemas.equivalence_checks import EquivalenceChecksRequest
from schemas.pairs import PairAnswer
from schemas.tokenize import TokenizeRequest
from schemas.trajectories import TrajectoriesRequest
from schemas.weight_updates import WeightUpdatesRequest

PAIR = {"context": "a", "query": [1]}
REQUESTS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (ActivationsRequest, {"prompts": ["a", [1]]}),
    (WeightUpdatesRequest, PAIR),
    (EquivalenceChecksRequest, PAIR),
    (TrajectoriesRequest, PAIR),
    (AttributionsRequest, PAIR),
    (TokenizeRequest, {"prompts": ["a"]}),
    (CompletionRequest, {"prompt": "a"}),
]


@pytest.mark.parametrize(("request_model", "body"), REQUESTS)
def test_requests_forbid_unknown_fields_and_changes(
    request_model: type[BaseModel], body: dict[str, Any]
) -> None:
    """Every request model forbids unknown fields and is immutable once parsed."""
    read = request_model.model_validate_json(json.dumps(body))
    with pytest.raises(ValidationError):
        request_model.model_validate_json(json.dumps(body | {"surprise": 1}))
    with pytest.raises(ValidationError):
        setattr(read, next(iter(body)), None)


@pytest.mark.parametrize(("request_model", "body"), REQUESTS)
def test_examples_of_requests_are_valid(
    request_model: type[BaseModel], body: dict[str, Any]
) -> None:
    """Every request model has at least two examples, and each of them is valid."""
    examples = request_model.model_json_schema()["examples"]
    assert len(examples) >= 2
    for example in [*examples, body]:
        request_model.model_validate_json(json.dumps(example))


def test_omitted_fields_take_the_documented_defaults() -> None:
    """Omitted fields take the defaults of the contract."""
    pair = WeightUpdatesRequest.model_validate_json(json.dumps(PAIR))
    assert (pair.baseline, pair.layers, pair.positions) == (None, "all", "last")
    assert (pair.include, pair.form, pair.encoding) == (["factors"], "bias", "json")
    checks = EquivalenceChecksRequest.model_validate_json(json.dumps(PAIR))
    assert (checks.scope, checks.precision, checks.apply) == ("block", "model", "materialized")
    assert (checks.tolerance, checks.controls) == (None, True)
    prompts = ActivationsRequest.model_validate_json('{"prompts": ["a"]}')
    assert (prompts.hook_points, prompts.reduce, prompts.layers) == (["mlp_in"], "none", "all")


@pytest.mark.parametrize("spans", [[[0, 7]], [[0, 1], [3, 4]]])
def test_spans_are_arrays_of_two(spans: list[list[int]]) -> None:
    """Spans are JSON arrays of two integers, in requests and when written back."""
    body = PAIR | {"baseline": {"without": spans}}
    read = WeightUpdatesRequest.model_validate_json(json.dumps(body))
    assert json.loads(read.model_dump_json(include={"baseline"})) == {
        "baseline": {"without": spans}
    }


def _derived(base: type[Answer]) -> list[type[Answer]]:
    return [kind for kind in base.__subclasses__() if kind.__module__.startswith("schemas.")]


def test_answers_inherit_the_descriptions_of_fields() -> None:
    """An answer that extends another describes each inherited field as the other does."""
    bases = {base for base in _derived(Answer) if _derived(base)}
    assert bases == {Token, PairAnswer}
    for base in bases:
        inherited = adapter(base).json_schema()["properties"]
        for derived in _derived(base):
            own = adapter(derived).json_schema()["properties"]
            assert {name: own[name] for name in inherited} == inherited, derived
