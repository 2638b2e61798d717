"""An adapter as it is made, as it is used, and what identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from schemas.adapters import (
    Adapter,
    AdapterLayer,
    FitOn,
    StaticAdapterRequest,
    TokenAdapterRequest,
)
from schemas.pairs import AnotherContext, Baseline, Form
from service.analysis.inputs import Text, beginning_of, refuse, resolve_ids
from service.analysis.pairs import Pair, resolve_baseline, resolve_pair
from service.engine import Model, Question
from service.errors import Path
from service.theory.static_update import StaticUpdate

ID_DIGITS = 32
"""Hexadecimal digits of an id."""


@dataclass(frozen=True, eq=False)
class MadeAdapter:
    """An adapter that was computed and is not stored yet.

    Args:
        kind: `token` or `static`.
        exact: Whether it is exact for its own context, query and positions.
        form: The carrier of Δh, or of a static adapter's update.
        baseline: The run in which it is used.
        position_shift: Position of the query with context minus its position in use.
        updates: The update of each patched layer, float32, on the host.
        layers: The figures of each patched layer.
        fields: The fields of `schemas.adapters.Adapter` that only this kind has.
        check: Applies updates that were read from a file again. Returns `verified`, the largest
            relative error of the logits.
    """

    kind: Literal["token", "static"]
    exact: bool
    form: Form
    baseline: Baseline
    position_shift: int | None
    updates: Mapping[int, StaticUpdate]
    layers: Sequence[AdapterLayer]
    fields: Mapping[str, Any]
    check: Callable[[Mapping[int, StaticUpdate]], Question[float]]


class LoadedAdapter(Protocol):
    """An adapter that was read from its files."""

    @property
    def id(self) -> str:
        """Its `adapter_id`."""

    @property
    def updates(self) -> Mapping[int, StaticUpdate]:
        """The update of each patched layer."""

    @property
    def record(self) -> Adapter:
        """The answer that was given when it was made."""


def adapter_id(model: Model, body: TokenAdapterRequest | StaticAdapterRequest) -> str:
    """The id of an adapter: a hash of its key. Errors are those of `adapter_key`."""
    return _hashed(adapter_key(model, body))


def token_adapter_id(model: Model, pair: Pair, form: Form) -> str:
    """The id of the token adapter that is exact at all positions of a pair."""
    return _hashed(_written(model, "token", _of_token(pair, form)))


def adapter_key(model: Model, body: TokenAdapterRequest | StaticAdapterRequest) -> bytes:
    """What determines an adapter, as canonical JSON: the weights, all token ids and all options.

    The name is left out. Texts and the ids that they become have the same key, and so have a
    default and its value.

    Raises:
        Refused: An input does not fit the model.
    """
    if isinstance(body, TokenAdapterRequest):
        pair = token_pair(model, body)
        return _written(model, "token", _of_token(pair, token_form(model, body, pair)))
    return _written(model, "static", _of_static(model, body))


def token_pair(model: Model, body: TokenAdapterRequest) -> Pair:
    """The run with context and its baseline, the positions in ascending order.

    Raises:
        Refused: An input does not fit the model.
    """
    pair = resolve_pair(model, body.context, body.query, body.baseline, body.positions)
    several = len(pair.positions) > 1
    refuse(
        several and model.post_norms,
        "A norm follows this model's MLP, and one gain cannot serve several positions. Ask for an "
        "adapter for each position.",
        "positions",
    )
    return replace(pair, positions=tuple(sorted(pair.positions)))


def token_form(model: Model, body: TokenAdapterRequest, pair: Pair) -> Form:
    """The carrier of Δh that a request asks for, or its default.

    Raises:
        NotSupported: `bias` where no parameter can hold it, or for several positions.
    """
    holds = model.bias_parameter(0) is not None
    several = len(pair.positions) > 1
    if body.form is None:
        return "bias" if holds and not several else "weights"
    refuse(
        body.form == "bias" and several,
        "Each position has its own Δh, which one bias cannot hold. Choose the form `weights`.",
        "form",
    )
    refuse(
        body.form == "bias" and not holds,
        "The MLP's second weight of this model has no bias that could hold Δh. Choose the form "
        "`weights`.",
        "form",
    )
    return body.form


def _hashed(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:ID_DIGITS]


def _written(model: Model, kind: str, asked: dict[str, Any]) -> bytes:
    """The key of an adapter. In another dtype the same files give other weights."""
    summary = model.summary
    weights = {"weights": summary.weights_digest, "dtype": summary.dtype}
    key = {**weights, "kind": kind, **asked}
    return json.dumps(key, sort_keys=True, separators=(",", ":")).encode()


def _of_token(pair: Pair, form: Form) -> dict[str, Any]:
    """What determines a token adapter besides the weights."""
    baseline: Any = pair.kind
    if isinstance(baseline, AnotherContext):
        baseline = {"context": pair.baseline.ids[: -len(pair.query)]}
    elif isinstance(baseline, BaseModel):
        baseline = baseline.model_dump()
    return {
        "context": pair.context,
        "query": pair.query,
        "baseline": baseline,
        "positions": pair.positions,
        "form": form,
    }


def _of_static(model: Model, body: StaticAdapterRequest) -> dict[str, Any]:
    """What determines a static adapter besides the weights."""

    def ids(text: Text, *at: str | int, begun: bool = False) -> tuple[int, ...]:
        path: Path = at
        return (beginning_of(model, text) if begun else ()) + resolve_ids(model, text, path)

    keep = body.keep
    kept: Any = keep
    if not isinstance(keep, str):
        kept = [ids(text, "keep", i, begun=True) for i, text in enumerate(keep)]
    held_out = body.held_out
    return body.model_dump(exclude={"name"}) | {
        "context": ids(body.context, "context", begun=True),
        "queries": [ids(text, "queries", i) for i, text in enumerate(body.queries)],
        "held_out": None
        if held_out is None
        else [ids(text, "held_out", i) for i, text in enumerate(held_out)],
        "baseline": resolve_baseline(model, body.baseline),
        "fit_on": fitted_tokens(body),
        "keep": kept,
    }


def fitted_tokens(body: StaticAdapterRequest) -> FitOn:
    """The tokens that a request fits, or the default of its recipe.

    A mean over all tokens is almost no patch of the first answer token, which is the one that a
    steering vector is for.
    """
    return body.fit_on or ("last" if body.recipe == "mean_output" else "query+answer")
