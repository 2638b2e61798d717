"""The client's arguments, methods and problem classes match the schemas."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from deltaw_client import AsyncDeltawClient, DeltawClient, problems, resources
from deltaw_client.problems import PROBLEM_ERRORS
from schemas.activations import ActivationsRequest
from schemas.attributions import AttributionsRequest
from schemas.equivalence_checks import EquivalenceChecksRequest
from schemas.problems import PROBLEMS
from schemas.tokenize import TokenizeRequest
from schemas.trajectories import TrajectoriesRequest
from schemas.weight_updates import WeightUpdatesRequest

REQUESTS: dict[str, type[BaseModel]] = {
    "activations": ActivationsRequest,
    "weight_updates": WeightUpdatesRequest,
    "equivalence_checks": EquivalenceChecksRequest,
    "trajectories": TrajectoriesRequest,
    "attributions": AttributionsRequest,
    "tokenize": TokenizeRequest,
}
OWN = {"request_id", "deadline_seconds", "encoding"}
UNSAID = ("equivalence_checks", "stream")
"""None in the client: the service derives it from the scope."""


@pytest.mark.parametrize(("resource", "request_model"), REQUESTS.items())
def test_arguments_are_the_fields_of_the_request(
    resource: str, request_model: type[BaseModel]
) -> None:
    """A resource has an argument for each field of its request, with the same default."""
    call: Callable[..., Any] = getattr(resources, resource)
    parameters = inspect.signature(call).parameters
    fields = request_model.model_fields
    assert parameters.keys() - OWN == fields.keys() - OWN
    for name in fields.keys() - OWN:
        default = parameters[name].default
        if (resource, name) == UNSAID:
            assert default is None
        elif fields[name].is_required():
            assert default is inspect.Parameter.empty
        else:
            said = list(default) if isinstance(default, tuple) else default
            assert said == fields[name].default, name


@pytest.mark.parametrize("resource", [*REQUESTS, "model"])
def test_each_resource_is_a_method_of_both_clients(resource: str) -> None:
    """Both methods have the resource's signature and its docstring."""
    wanted = inspect.signature(getattr(resources, resource))
    for kind in (DeltawClient, AsyncDeltawClient):
        method = getattr(kind, resource)
        assert inspect.signature(method) == wanted
        assert method.__doc__ == getattr(resources, resource).__doc__
    assert inspect.iscoroutinefunction(getattr(AsyncDeltawClient, resource))


def test_each_argument_is_described() -> None:
    """Each argument of each resource has a line in the docstring."""
    for resource in [*REQUESTS, "model"]:
        call = getattr(resources, resource)
        for name in inspect.signature(call).parameters:
            assert f"    {name}: " in (inspect.getdoc(call) or "")


def test_each_problem_code_has_a_class() -> None:
    """Each code has a class, which the module declares, explains, and which can be pickled."""
    assert PROBLEM_ERRORS.keys() == PROBLEMS.keys()
    for code, kind in PROBLEM_ERRORS.items():
        assert kind.code == code
        assert kind.__doc__ == PROBLEMS[code].meaning
        assert pickle.loads(pickle.dumps(kind)) is kind
    declared = {name for name, kind in problems.__annotations__.items() if "ProblemError]" in kind}
    assert declared - {"PROBLEM_ERRORS"} == {kind.__name__ for kind in PROBLEM_ERRORS.values()}
