"""The client's arguments, methods and problem classes match the schemas."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from deltaw_client import AsyncDeltawClient, DeltawClient, adapters, generation, problems, resources
from deltaw_client.problems import PROBLEM_ERRORS
from schemas.activations import ActivationsRequest
from schemas.adapters import StaticAdapterRequest, TokenAdapterRequest
from schemas.attributions import AttributionsRequest
from schemas.completions import CompletionRequest
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
    "completions": CompletionRequest,
    "stream_completions": CompletionRequest,
}
GENERATION = ("completions", "stream_completions", "models")
FOR_OPENAI = {"n", "best_of", "presence_penalty", "frequency_penalty", "logit_bias", "suffix"}
LEFT_OUT = FOR_OPENAI | {"user", "stream"}
"""Fields of a completion that the client does not have, or sets itself."""
METHODS = [*REQUESTS, "model", "models"]
OWN = {"request_id", "deadline_seconds", "encoding"}
UNSAID = ("equivalence_checks", "stream")
"""None in the client: the service derives it from the scope."""


def call_of(resource: str) -> Callable[..., Any]:
    """Return a resource's function."""
    found: Callable[..., Any] = getattr(
        generation if resource in GENERATION else resources, resource
    )
    return found


@pytest.mark.parametrize(("resource", "request_model"), REQUESTS.items())
def test_arguments_are_the_fields_of_the_request(
    resource: str, request_model: type[BaseModel]
) -> None:
    """A resource has an argument for each field of its request, with the same default."""
    parameters = inspect.signature(call_of(resource)).parameters
    fields = request_model.model_fields
    names = fields.keys() - OWN - (LEFT_OUT if resource in GENERATION else set())
    assert parameters.keys() - OWN == names
    for name in names:
        default = parameters[name].default
        if (resource, name) == UNSAID:
            assert default is None
        elif fields[name].is_required():
            assert default is inspect.Parameter.empty
        else:
            said = list(default) if isinstance(default, tuple) else default
            assert said == fields[name].default, name


def test_arguments_of_an_adapter_are_the_fields_of_both_kinds() -> None:
    """`create` has an argument for each field of both requests; None is the service's default."""
    parameters = inspect.signature(adapters.create).parameters
    fields = TokenAdapterRequest.model_fields | StaticAdapterRequest.model_fields
    assert parameters.keys() - OWN == fields.keys()
    for name in fields.keys() - {"context", "kind"}:
        assert parameters[name].default is None


@pytest.mark.parametrize("resource", METHODS)
def test_each_resource_is_a_method_of_both_clients(resource: str) -> None:
    """Both methods have the resource's signature and its docstring."""
    wanted = inspect.signature(call_of(resource))
    for kind in (DeltawClient, AsyncDeltawClient):
        method = getattr(kind, resource)
        assert inspect.signature(method) == wanted
        assert method.__doc__ == call_of(resource).__doc__
    streamed = resource.startswith("stream_")
    assert inspect.iscoroutinefunction(getattr(AsyncDeltawClient, resource)) is not streamed


def test_each_argument_is_described() -> None:
    """Each argument of each resource has a line in the docstring."""
    calls: list[Callable[..., Any]] = [*map(call_of, METHODS), adapters.create, adapters.list_all]
    for call in calls:
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
