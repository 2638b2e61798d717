"""The resources as functions from arguments to a call. Both clients make their methods of these.

Arguments are the fields of the request models in `schemas`, with the same names and defaults; a
test compares them. The service validates them, and reports a mistake as a problem with a pointer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
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
F = TypeVar("F", bound=Callable[..., Any])

Text = str | Sequence[int] | NDArray[np.integer[Any]]
"""A prompt as text, or as token ids."""
Layers = Literal["all"] | Sequence[int]
Positions = Literal["last", "all"] | Sequence[int]
Baseline = BaselineName | WithoutSpans | AnotherContext | Mapping[str, Any]
Stream = Literal["free", "sequential"]
Spans = Sequence[tuple[int, int]]
Encoding = Literal["safetensors", "json", "base64"]
"""How tensors travel. The arrays of the answer are the same with each."""

SHARED = {
    "context": "Text before the query.",
    "query": "Text after the context, tokenised by itself; it often begins with a space.",
    "baseline": "Run that the run with context is compared with: `matched`, `alone`, `anchored`, "
    '`{"without": spans}` or `{"context": text}`.',
    "stream": "Run that gives the baseline of a layer: `free` or `sequential`.",
    "layers": "`all`, or layers from 0; negative ones count from the end.",
    "positions": "`last`, `all`, or token indices into the query (or the prompt).",
    "encoding": "How tensors travel; the arrays are the same with each.",
    "request_id": "Id of the request in the service's log; None generates one.",
    "deadline_seconds": "Seconds for the whole call; None takes the client's deadline.",
}
"""Descriptions of the arguments that several resources have."""


def _documented(call: F) -> F:
    """Append the descriptions of shared arguments to a resource's docstring."""
    shared = [name for name in inspect.signature(call).parameters if name in SHARED]
    own = inspect.getdoc(call) or ""
    head = own if "\nArgs:" in own else f"{own}\n\nArgs:"
    call.__doc__ = "\n".join([head, *(f"    {name}: {SHARED[name]}" for name in shared)])
    return call


def _post(answer: type[A], path: str, arguments: Mapping[str, Any]) -> Call[A]:
    """Make a POST whose body has the arguments that are not None and not the call's own."""
    own = {name: arguments[name] for name in ("request_id", "deadline_seconds")}
    fields = {k: v for k, v in arguments.items() if k not in own and v is not None}
    accept = JSON
    if fields.get("encoding") == "safetensors":
        del fields["encoding"]
        accept = SAFETENSORS
    return Call(answer, path, fields, accept, **own)


@_documented
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
        prompts: Texts; each is run by itself.
        hook_points: Names of the vectors to capture; `model()` describes them.
        reduce: `none` returns [positions, width]; `norm` the norm of each row, [positions]; `mean`
            the mean over the positions, [width].
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


@_documented
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
        include: Any of `factors`, `bias`, `next_tokens`, `split`; () returns only the norms.
        joint: Whether to compute one patch of both MLP weights for all positions; the answer is
            then a `JointUpdates`.
        probe_queries: Further queries on which each update is evaluated.
    """
    return _post(
        answers.JointUpdates if joint else answers.WeightUpdates, "/v1/weight-updates", locals()
    )


@_documented
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

    `stream=None` is `sequential` in scope `model`, and `free` in the others.

    Args:
        scope: What is compared: `projection`, `block`, or `model`.
        precision: Dtype of both passes; `model` is the dtype of the resident weights.
        tolerance: Maximum relative error of a check that holds; None derives it.
        apply: `materialized` multiplies by W + ΔW; `factored` adds (n·a) b.
        joint: Whether to check one patch of both MLP weights for all positions.
        controls: Whether to run the controls, whose errors must be far larger.
    """
    return _post(answers.EquivalenceChecks, "/v1/equivalence-checks", locals())


@_documented
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

    The baseline is `matched` or `anchored`, the stream `free`.

    Args:
        spans: Half-open spans of context tokens that cover the context; None makes one a token.
    """
    return _post(answers.Trajectories, "/v1/trajectories", locals())


@_documented
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
    """Measure what each span of the context contributes to ΔW: `answer.layers[i].spans`.

    The baseline is `matched` or `anchored`, the stream `free`.

    Args:
        spans: Half-open spans of context tokens; None takes the sentences.
    """
    return _post(answers.Attributions, "/v1/attributions", locals())


@_documented
def tokenize(
    prompts: Sequence[Text] | None = None,
    *,
    context: Text | None = None,
    query: Text | None = None,
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.Tokenized]:
    """Tokenise prompts, or a context and a query, and report whether tokens merge at their border.

    Args:
        prompts: Texts; each is tokenised by itself.
    """
    return _post(answers.Tokenized, "/v1/tokenize", locals())


@_documented
def model(
    *, request_id: str | None = None, deadline_seconds: float | None = None
) -> Call[answers.LoadedModel]:
    """Describe the resident model: shape, hook points, limits, versions, self-check."""
    return Call(answers.LoadedModel, "/v1/model", None, JSON, request_id, deadline_seconds)
