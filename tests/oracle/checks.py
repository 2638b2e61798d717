"""The equivalence checks and their controls, each a run of the baseline under patched weights.

The tolerance and the controls are those of docs/theory.md, "What an exact check proves". Each scope
compares one vector at one query position:

    projection   output of the layer's first weights with their biases: mlp_pre, gate and up
    block        resid_post of the layer
    model        resid_post of each layer in the one fully patched run, and the logits

``expected`` comes from the run with the context, ``actual`` from the baseline run under the patch,
and ``unpatched`` from the baseline run without this patch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .checkpoint import Array
from .decoder import Patch
from .questions import Question
from .sequential import sequential
from .updates import Form, Update, between, norm, ratio, update

Scope = Literal["projection", "block"]
Stream = Literal["free", "sequential"]

COMPARED = {"projection": "mlp_first", "block": "resid_post"}


@dataclass(frozen=True, eq=False)
class Check:
    """Three vectors, and the figures that an answer reports about them."""

    expected: Array
    actual: Array
    unpatched: Array

    @property
    def magnitude(self) -> float:
        """Norm of the expected vector: |expected|."""
        return norm(self.expected)

    @property
    def error(self) -> float:
        """Absolute error: |actual - expected|."""
        return norm(self.actual - self.expected)

    @property
    def relative_error(self) -> float:
        """Relative error: |actual - expected| / |expected|."""
        return relative_error(self.actual, self.expected)

    @property
    def max_abs_error(self) -> float:
        """Largest entry of |actual - expected|."""
        return float(np.abs(self.actual - self.expected).max())

    @property
    def unpatched_relative_error(self) -> float:
        """Relative error without the patch: |unpatched - expected| / |expected|."""
        return relative_error(self.unpatched, self.expected)

    def improvement(self, epsilon: float) -> float:
        """Unpatched over patched relative error, the latter at least the dtype's ε."""
        return self.unpatched_relative_error / max(self.relative_error, epsilon)

    def vacuous(self, tolerance: float) -> bool:
        """Whether the context changes too little for the check to tell anything."""
        return self.unpatched_relative_error <= 10 * tolerance


def relative_error(actual: Array, expected: Array) -> float:
    """Relative error: |actual - expected| / |expected|."""
    return ratio(norm(actual - expected), norm(expected))


def tolerance(gate: float, change: Update, expected: Array) -> float:
    """gate * max(1, (|h| + |h_C|) / |expected|) (docs/theory.md, "What an exact check proves")."""
    return gate * max(1.0, (norm(change.h) + norm(change.h_with)) / norm(expected))


def projection_check(
    question: Question, layer: int, position: int = -1, stream: Stream = "free"
) -> Check:
    """n (W1 + ΔW1) + b1 compared with n_C W1 + b1."""
    return _check(question, layer, position, "projection", stream)


def block_check(
    question: Question,
    layer: int,
    position: int = -1,
    stream: Stream = "free",
    form: Form = "bias",
) -> Check:
    """The block's output under the patch compared with the output with the context."""
    return _check(question, layer, position, "block", stream, form)


def model_check(question: Question, layer: int, position: int = -1, form: Form = "bias") -> Check:
    """One block's output in the fully patched run; unpatched is the ordinary baseline run."""
    point = (layer, "resid_post")
    return Check(
        expected=question.full[point][position],
        actual=sequential(question, position, form).patched[point][position],
        unpatched=question.base[point][position],
    )


def logits_check(question: Question, position: int = -1, form: Form = "bias") -> Check:
    """The logits (vocab) of the fully patched run."""
    runs = sequential(question, position, form)
    return Check(runs.logits_with_context, runs.logits_patched, runs.logits_unpatched)


def _check(
    question: Question,
    layer: int,
    position: int,
    scope: Scope,
    stream: Stream,
    form: Form = "bias",
) -> Check:
    """Expected, actual and unpatched vector at the compared hook point."""
    change, beneath = _change(question, layer, position, stream, form)
    return Check(
        expected=question.full[layer, COMPARED[scope]][position],
        actual=_reading(
            question, layer, position, scope, {**beneath, layer: change.patch_in(form)}
        ),
        unpatched=_reading(question, layer, position, scope, beneath),
    )


def controls(
    question: Question,
    layer: int,
    position: int = -1,
    scope: Scope = "block",
    stream: Stream = "free",
    random_output: Array | None = None,
    order: Sequence[int] | None = None,
) -> dict[str, float]:
    """The relative error of each control, for the vector that the check itself compares.

    Args:
        random_output: (d_mlp) a direction that replaces the output factor, scaled to its norm;
            if None there is no ``random_update``.
        order: a permutation of the listed context's indices, read by the run with the context;
            if None there is no ``shuffled_context``.
    """
    change, beneath = _change(question, layer, position, stream)
    patches = {"bias_only_at_attention": Patch(attention_bias=change.delta_h)}
    if scope == "block":
        patches["without_bias"] = Patch(w_in=change.dense)
        patches["without_weight"] = Patch(output_bias=change.delta_h)
    if random_output is not None:
        scaled = random_output * (norm(change.output_factor) / norm(random_output))
        patches["random_update"] = Patch(
            w_in=np.outer(change.input_factor, scaled), output_bias=change.delta_h
        )
    if order is not None:
        shuffled = question.trace(question.reordered(order))
        base = question.patched(beneath)
        patches["shuffled_context"] = between(question, layer, position, shuffled, base).patch
    expected = question.full[layer, COMPARED[scope]][position]
    errors = {}
    for name, patch in patches.items():
        actual = _reading(question, layer, position, scope, {**beneath, layer: patch})
        errors[name] = relative_error(actual, expected)
    return errors


def free_stream_patches(question: Question, position: int = -1) -> dict[str, float | list[float]]:
    """The control of scope model: all free-stream updates applied together, to every row.

    ``layers``: relative error of each block's output; ``logits``: that of the logits.
    """
    runs = sequential(question, position)
    layers = [
        relative_error(
            runs.free_stream[layer, "resid_post"][position],
            question.full[layer, "resid_post"][position],
        )
        for layer in range(question.model.n_layers)
    ]
    logits = relative_error(runs.logits_free_stream_patches, runs.logits_with_context)
    return {"layers": layers, "logits": logits}


def _change(
    question: Question, layer: int, position: int, stream: Stream, form: Form = "bias"
) -> tuple[Update, dict[int, Patch]]:
    """The layer's update in this stream, and the patches of the layers below it."""
    if stream == "free":
        return update(question, layer, position), {}
    runs = sequential(question, position, form)
    return runs.updates[layer], runs.beneath(layer)


def _reading(
    question: Question, layer: int, position: int, scope: Scope, patches: Mapping[int, Patch]
) -> Array:
    """The compared vector of the baseline run under these patches."""
    values: Array = question.patched(patches)[layer, COMPARED[scope]][position]
    return values
