"""The resources as functions from arguments to a call. Both clients make their methods of these.

Arguments are the fields of the request models in `schemas`, with the same names and defaults; a
test compares them. Their descriptions, appended to the docstrings here, are those of the fields.
The service validates them, and reports a mistake as a problem with a pointer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from deltaw_client import answers
from deltaw_client.calls import JSON, SAFETENSORS, A, Call
from schemas.activations import ActivationsRequest, HookPoint, Reduce
from schemas.attributions import AttributionsRequest
from schemas.common import Request
from schemas.equivalence_checks import Apply, EquivalenceChecksRequest, Scope
from schemas.pairs import AnotherContext, BaselineName, Form, Stream, WithoutSpans
from schemas.tokenize import TokenizeRequest
from schemas.trajectories import TrajectoriesRequest
from schemas.weight_updates import Include, WeightUpdatesRequest

F = TypeVar("F", bound=Callable[..., Any])

Text = str | Sequence[int] | NDArray[np.integer[Any]]
"""A prompt as text, or as token ids."""
Layers = Literal["all"] | Sequence[int]
Positions = Literal["last", "all"] | Sequence[int]
Baseline = BaselineName | WithoutSpans | AnotherContext | Mapping[str, Any]
Spans = Sequence[tuple[int, int]]
Encoding = Literal["safetensors", "json", "base64"]

OWN = {
    "encoding": "How tensors travel; the arrays of the answer are the same with each.",
    "request_id": "Id of the request in the service's log; None generates one.",
    "deadline_seconds": "Seconds for the whole call; None takes the client's deadline.",
}
"""Descriptions of the arguments that the client defines itself."""


def takes(*requests: type[Request]) -> Callable[[F], F]:
    """Append the descriptions of the requests' fields to a resource's docstring."""

    def described(call: F) -> F:
        known = [field for request in requests for field in request.model_fields.items()]
        fields = {name: field.description for name, field in known} | OWN
        lines = [
            fill(f"    {name}: {fields[name]}".replace("Null", "None"), subsequent_indent=" " * 8)
            for name in inspect.signature(call).parameters
        ]
        call.__doc__ = "\n".join([inspect.getdoc(call) or "", "", "Args:", *lines])
        return call

    return described


def post(answer: type[A], path: str, arguments: Mapping[str, Any]) -> Call[A]:
    """Make a POST whose body has the arguments that are not None and not the call's own."""
    own = {name: arguments[name] for name in ("request_id", "deadline_seconds")}
    fields = {k: v for k, v in arguments.items() if k not in own and v is not None}
    accept = JSON
    if fields.get("encoding") == "safetensors":
        del fields["encoding"]
        accept = SAFETENSORS
    return Call(answer, path, fields, accept, **own)


@takes(ActivationsRequest)
def activations(
    prompts: Sequence[Text],
    *,
    layers: Layers = "all",
    hook_points: Sequence[HookPoint] = ("mlp_in",),
    positions: Positions = "last",
    reduce: Reduce = "none",
    encoding: Encoding = "safetensors",
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.Activations]:
    """Capture activations: `answer.prompts[i].activations[j].values` is an array."""
    return post(answers.Activations, "/v1/activations", locals())


@takes(WeightUpdatesRequest)
def weight_updates(
    context: Text,
    query: Text,
    *,
    baseline: Baseline | None = None,
    stream: Stream = "free",
    layers: Layers = "all",
    positions: Positions = "last",
    include: Sequence[Include] = ("factors",),
    form: Form = "bias",
    probe_queries: Sequence[Text] = (),
    encoding: Encoding = "safetensors",
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.WeightUpdates]:
    """Summarise the implicit weight updates: `answer.updates[i].input` is an array.

    The output factors are `answer.updates[i].weights[w].output`, one for each first weight.
    """
    return post(answers.WeightUpdates, "/v1/weight-updates", locals())


@takes(EquivalenceChecksRequest)
def equivalence_checks(
    context: Text,
    query: Text,
    *,
    baseline: Baseline | None = None,
    stream: Stream | None = None,
    layers: Layers = "all",
    positions: Positions = "last",
    scope: Scope = "block",
    form: Form = "bias",
    precision: Literal["model", "float32", "float64"] = "model",
    tolerance: float | None = None,
    patch: Mapping[str, Any] | None = None,
    apply: Apply = "materialized",
    controls: bool = True,
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.EquivalenceChecks]:
    """Run the equivalence check: `answer.holds`, and `answer.checks` with their controls.

    `stream=None` is `sequential` in scope `model`, and `free` in the others.
    """
    return post(answers.EquivalenceChecks, "/v1/equivalence-checks", locals())


@takes(TrajectoriesRequest)
def trajectories(
    context: Text,
    query: Text,
    *,
    baseline: Baseline | None = None,
    stream: Stream = "free",
    layers: Layers = "all",
    positions: Positions = "last",
    spans: Spans | None = None,
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.Trajectories]:
    """Follow ΔW as the context is read: `answer.layers[i].steps`.

    The baseline is `matched` or `anchored`, the stream `free`.
    """
    return post(answers.Trajectories, "/v1/trajectories", locals())


@takes(AttributionsRequest)
def attributions(
    context: Text,
    query: Text,
    *,
    baseline: Baseline | None = None,
    stream: Stream = "free",
    layers: Layers = "all",
    positions: Positions = "last",
    spans: Spans | None = None,
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.Attributions]:
    """Measure what each span of the context contributes to ΔW: `answer.layers[i].spans`.

    The baseline is `matched` or `anchored`, the stream `free`.
    """
    return post(answers.Attributions, "/v1/attributions", locals())


@takes(TokenizeRequest)
def tokenize(
    prompts: Sequence[Text] | None = None,
    *,
    context: Text | None = None,
    query: Text | None = None,
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.Tokenized]:
    """Tokenise prompts, or a context and a query, and report whether tokens merge at the border."""
    return post(answers.Tokenized, "/v1/tokenize", locals())


@takes(Request)
def model(
    *, request_id: str | None = None, deadline_seconds: float | None = None
) -> Call[answers.LoadedModel]:
    """Describe the resident model: shape, hook points, limits, versions, self-check."""
    return Call(answers.LoadedModel, "/v1/model", None, JSON, request_id, deadline_seconds)
