"""What the client repeats of the schemas is the same there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from deltaw_client import AsyncDeltawClient, DeltawClient, resources
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
"""Left to the service, where it follows from the scope."""


@pytest.mark.parametrize(("resource", "request_model"), REQUESTS.items())
def test_arguments(resource: str, request_model: type[BaseModel]) -> None:
    """A resource's arguments are its request's fields, with the same defaults."""
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
def test_methods(resource: str) -> None:
    """Each resource is a method of both clients, with its arguments and its description."""
    wanted = inspect.signature(getattr(resources, resource))
    for kind in (DeltawClient, AsyncDeltawClient):
        method = getattr(kind, resource)
        assert inspect.signature(method) == wanted
        assert method.__doc__ == getattr(resources, resource).__doc__
    assert inspect.iscoroutinefunction(getattr(AsyncDeltawClient, resource))


def test_descriptions() -> None:
    """Every argument of every resource is described."""
    for resource in [*REQUESTS, "model"]:
        call = getattr(resources, resource)
        for name in inspect.signature(call).parameters:
            assert f"    {name}: " in (inspect.getdoc(call) or "")


def test_problems() -> None:
    """There is an exception for each problem code, and none without one."""
    assert PROBLEM_ERRORS.keys() == PROBLEMS.keys()
    for code, kind in PROBLEM_ERRORS.items():
        assert kind.code == code
        assert kind.__doc__ == PROBLEMS[code].meaning
