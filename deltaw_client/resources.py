"""The resources as functions: arguments in, a call out. Both clients' methods are made from these.

Arguments are the fields of the request models in `schemas`, under their names and with their
defaults; a test holds both equal. They are not validated here: the service does it, and says what
is wrong as a problem with a pointer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from deltaw_client import answers
from deltaw_client.answers import Received
from deltaw_client.calls import JSON, SAFETENSORS, Call
from schemas.activations import HookPoint
from schemas.pairs import AnotherContext, BaselineName, WithoutSpans
from schemas.weight_updates import Include

A = TypeVar("A", bound=Received)

Text = str | Sequence[int] | NDArray[np.integer[Any]]
"""A prompt as text, or as token ids."""
Layers = Literal["all"] | Sequence[int]
Positions = Literal["last", "all"] | Sequence[int]
Baseline = BaselineName | WithoutSpans | AnotherContext | Mapping[str, Any]
Stream = Literal["free", "sequential"]
Spans = Sequence[tuple[int, int]]
Encoding = Literal["safetensors", "json", "base64"]
"""How tensors travel; what arrives in a program is the same array each time."""


def _post(answer: type[A], path: str, arguments: Mapping[str, Any]) -> Call[A]:
    """The call with a body of all arguments that are given and not the call's own."""
    own = {name: arguments[name] for name in ("request_id", "deadline_seconds")}
    fields = {k: v for k, v in arguments.items() if k not in own and v is not None}
    accept = JSON
    if fields.get("encoding") == "safetensors":
        del fields["encoding"]
        accept = SAFETENSORS
    return Call(answer, path, fields, accept, **own)


def activations(
    prompts: Sequence[Text],
    *,
    layers: Layers = "all",
    hook_points: Sequence[HookPoint] = ("mlp_in",),
    positions: Positions = "last",
    reduce: Literal["none", "norm", "mean"] = "none",
    encoding: Encoding = "safetensors",
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.Activations]:
    """Capture activations: `answer.prompts[i].activations[j].values` is an array.

    Args:
        prompts: Each is run by itself.
        layers: `all`, or layers from 0; negative ones count from the end.
        hook_points: Which vectors; `model()` says what each is.
        positions: `last`, `all`, or indices into each prompt.
        reduce: `none` [positions, width]; `norm` of each row [positions]; `mean` over the
            positions [width].
        encoding: How tensors travel.
        request_id: Under which the service logs it; by default a new one.
        deadline_seconds: Of this call; by default the client's.
    """
    return _post(answers.Activations, "/v1/activations", locals())


@overload
def weight_updates(
    context: Text,
    query: Text,
    *,
    baseline: Baseline = ...,
    stream: Stream = ...,
    layers: Layers = ...,
    positions: Positions = ...,
    include: Sequence[Include] = ...,
    joint: Literal[False] = ...,
    probe_queries: Sequence[Text] = ...,
    encoding: Encoding = ...,
    request_id: str | None = ...,
    deadline_seconds: float | None = ...,
) -> Call[answers.WeightUpdates]: ...


@overload
def weight_updates(
    context: Text,
    query: Text,
    *,
    baseline: Baseline = ...,
    stream: Stream = ...,
    layers: Layers = ...,
    positions: Positions = ...,
    include: Sequence[Include] = ...,
    joint: Literal[True],
    probe_queries: Sequence[Text] = ...,
    encoding: Encoding = ...,
    request_id: str | None = ...,
    deadline_seconds: float | None = ...,
) -> Call[answers.JointUpdates]: ...


def weight_updates(
    context: Text,
    query: Text,
    *,
    baseline: Baseline = "matched",
    stream: Stream = "free",
    layers: Layers = "all",
    positions: Positions = "last",
    include: Sequence[Include] = ("factors",),
    joint: bool = False,
    probe_queries: Sequence[Text] = (),
    encoding: Encoding = "safetensors",
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[Any]:
    """Summarise the implicit weight updates: `answer.updates[i].factors.input` is an array.

    Args:
        context: What is read before the query.
        query: Tokenised by itself; often begins with a space.
        baseline: What the run with context is compared with: `matched`, `alone`, `anchored`,
            `{"without": spans}` or `{"context": text}`.
        stream: Where a layer's baseline is read: `free` or `sequential`.
        layers: `all`, or layers from 0; negative ones count from the end.
        positions: `last`, `all`, or indices into the query.
        include: Any of `factors`, `bias`, `next_tokens`, `split`; () gives the norms alone.
        joint: One patch of both MLP weights for all positions; the answer is a `JointUpdates`.
        probe_queries: Further queries on which each update is tried.
        encoding: How tensors travel.
        request_id: Under which the service logs it; by default a new one.
        deadline_seconds: Of this call; by default the client's.
    """
    return _post(
        answers.JointUpdates if joint else answers.WeightUpdates, "/v1/weight-updates", locals()
    )


def equivalence_checks(
    context: Text,
    query: Text,
    *,
    baseline: Baseline = "matched",
    stream: Stream | None = None,
    layers: Layers = "all",
    positions: Positions = "last",
    scope: Literal["projection", "block", "model"] = "block",
    precision: Literal["model", "float32", "float64"] = "model",
    tolerance: float | None = None,
    apply: Literal["factored", "materialized"] = "materialized",
    joint: bool = False,
    controls: bool = True,
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.EquivalenceChecks]:
    """Run the equivalence check: `answer.holds`, and `answer.checks` with their controls.

    Args:
        context: What is read before the query.
        query: Tokenised by itself; often begins with a space.
        baseline: What the run with context is compared with, as in `weight_updates`.
        stream: `free` or `sequential`; None is `sequential` in scope `model`, else `free`.
        layers: `all`, or layers from 0; negative ones count from the end.
        positions: `last`, `all`, or indices into the query.
        scope: What is compared: `projection`, `block`, or `model`.
        precision: What both passes are computed in; `model` is the resident dtype.
        tolerance: Relative error up to which a check holds; None derives it.
        apply: `materialized` multiplies by W + ΔW; `factored` adds (n·a) b.
        joint: Check one patch of both MLP weights for all positions.
        controls: Whether to run the controls, which must be far worse.
        request_id: Under which the service logs it; by default a new one.
        deadline_seconds: Of this call; by default the client's.
    """
    return _post(answers.EquivalenceChecks, "/v1/equivalence-checks", locals())


def trajectories(
    context: Text,
    query: Text,
    *,
    baseline: Baseline = "matched",
    stream: Stream = "free",
    layers: Layers = "all",
    positions: Positions = "last",
    spans: Spans | None = None,
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.Trajectories]:
    """Follow ΔW as the context is read: `answer.layers[i].steps`.

    Args:
        context: What is read before the query.
        query: Tokenised by itself; often begins with a space.
        baseline: `matched` or `anchored`.
        stream: `free`.
        layers: `all`, or layers from 0; negative ones count from the end.
        positions: `last`, `all`, or indices into the query.
        spans: Half-open spans of context tokens that cover it; None is every token.
        request_id: Under which the service logs it; by default a new one.
        deadline_seconds: Of this call; by default the client's.
    """
    return _post(answers.Trajectories, "/v1/trajectories", locals())


def attributions(
    context: Text,
    query: Text,
    *,
    baseline: Baseline = "matched",
    stream: Stream = "free",
    layers: Layers = "all",
    positions: Positions = "last",
    spans: Spans | None = None,
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.Attributions]:
    """Say what each span of the context contributes: `answer.layers[i].spans`.

    Args:
        context: What is read before the query.
        query: Tokenised by itself; often begins with a space.
        baseline: `matched` or `anchored`.
        stream: `free`.
        layers: `all`, or layers from 0; negative ones count from the end.
        positions: `last`, `all`, or indices into the query.
        spans: Half-open spans of context tokens; None is sentences.
        request_id: Under which the service logs it; by default a new one.
        deadline_seconds: Of this call; by default the client's.
    """
    return _post(answers.Attributions, "/v1/attributions", locals())


def tokenize(
    prompts: Sequence[Text] | None = None,
    *,
    context: Text | None = None,
    query: Text | None = None,
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.Tokenized]:
    """Tokenise prompts, or a context and a query, and say whether their border merges.

    Args:
        prompts: Each is tokenised by itself.
        context: What is read before the query.
        query: Tokenised apart from the context.
        request_id: Under which the service logs it; by default a new one.
        deadline_seconds: Of this call; by default the client's.
    """
    return _post(answers.Tokenized, "/v1/tokenize", locals())


def model(
    *, request_id: str | None = None, deadline_seconds: float | None = None
) -> Call[answers.LoadedModel]:
    """Say what is loaded: shape, hook points, limits, versions, self-check.

    Args:
        request_id: Under which the service logs it; by default a new one.
        deadline_seconds: Of this call; by default the client's.
    """
    return Call(answers.LoadedModel, "/v1/model", None, JSON, request_id, deadline_seconds)
