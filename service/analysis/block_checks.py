"""Equivalence checks: the baseline run with patched weights against the run with context.

A passing check proves the plumbing and the algebra, not that "the MLP learns": adding Δh to the
attention output is exact as well, and is given as a control. So each check carries the error of the
unpatched run, and controls that must be far worse than the patch.

In the free stream a layer is patched beside the ordinary baseline run. In the sequential stream the
layers below are patched too, the checked vector is the patched run's own, and the unpatched one is
this layer's without its patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from service.analysis.factors import joint_layer_update, layer_update
from service.analysis.pairs import Pair, Stream, gathered, position_slices
from service.analysis.verdicts import Check, bounds_of, checks_of_layer, relative_errors
from service.engine import (
    Activations,
    Apply,
    Block,
    HookPoint,
    Model,
    Question,
    Run,
    Site,
    patched_block,
)
from service.theory import (
    DependentRows,
    ImplicitUpdate,
    JointUpdate,
    NonFinite,
    norm,
    tolerance,
)

SEED = 20251216
"""Of the random update and of the shuffled context; a layer and a position add to it."""

LayerScope = Literal["projection", "block"]
COMPARED: Mapping[LayerScope, HookPoint] = {"projection": "mlp_pre", "block": "resid_post"}
"""The vector that each scope compares."""

CONTROLS: Mapping[LayerScope, tuple[str, ...]] = {
    "projection": ("random_update", "shuffled_context", "bias_only_at_attention"),
    "block": (
        "without_bias",
        "without_weight",
        "random_update",
        "shuffled_context",
        "bias_only_at_attention",
    ),
}
"""The controls of each scope; Δh acts behind the projection."""


@dataclass(frozen=True)
class Procedure:
    """How a check is done.

    Args:
        scope: What is compared.
        dtype: What every run and every patch is computed in.
        stream: Whether the layers below are patched too.
        tolerance: The relative error up to which a check holds; None derives it.
        apply: How W + ΔW is applied.
        controls: Whether to run the controls.
        joint: Whether one patch serves all positions; free stream alone.
    """

    scope: LayerScope = "block"
    dtype: torch.dtype = torch.float32
    stream: Stream = "free"
    tolerance: float | None = None
    apply: Apply = "materialized"
    controls: bool = True
    joint: bool = False

    @property
    def points(self) -> tuple[HookPoint, ...]:
        """What is read of every run that an update is formed from."""
        return ("mlp_in", "resid_mid", "mlp_act") if self.joint else ("mlp_in", "resid_mid")


def block_checks(
    model: Model, pair: Pair, layers: Sequence[int], procedure: Procedure
) -> Question[tuple[Check, ...]]:
    """Check each layer at each asked position.

    Args:
        model: The resident model.
        pair: The run with context and its baseline.
        layers: From 0 up.
        procedure: How.
    """
    points = (*procedure.points, COMPARED[procedure.scope])
    dtype = procedure.dtype
    base = pair.baseline_runs(layers, points, procedure.stream, dtype, procedure.apply)
    runs = [pair.with_context.run(pair.reads(layers, points), dtype), *base]
    other = _shuffled(pair, layers, procedure) if procedure.controls else []
    context, *rest = yield [*runs, *other]
    baseline = gathered(rest[: len(base)])
    shuffled = rest[-1] if other else None
    checks: list[Check] = []
    count = len(pair.positions)
    parts = [slice(count)] if procedure.joint else position_slices(count)
    for layer in layers:
        block = model.blocks[layer].to(dtype)
        for part in parts:
            bench = _Bench(procedure, block, layer, _rows(context, part), _rows(baseline, part))
            other_order = None if shuffled is None else _rows(shuffled, part)
            checks += bench.checks(pair.positions[part], other_order)
            yield ()
    return tuple(checks)


def _rows(read: Activations, part: slice) -> Activations:
    """What was read at some of the positions."""
    return {site: values[part] for site, values in read.items()}


class _Bench:
    """One layer, the two readings of it, and its block, ready to be patched."""

    def __init__(
        self,
        procedure: Procedure,
        block: Block,
        layer: int,
        context: Activations,
        baseline: Activations,
    ) -> None:
        self.procedure, self.block, self.layer = procedure, block, layer
        self.context, self.baseline = context, baseline
        self.h = baseline[Site(layer, "resid_mid")]
        self.compared = Site(layer, COMPARED[procedure.scope])
        self.update = self.formed(context)

    def formed(self, context: Activations) -> ImplicitUpdate | JointUpdate:
        """The update that makes the baseline read as `context` does."""
        form = joint_layer_update if self.procedure.joint else layer_update
        return form(self.layer, context, self.baseline, self.block.w_in.weight).to(self.h.dtype)

    def run(self, h: Tensor, update: ImplicitUpdate | JointUpdate, apply: Apply) -> Tensor:
        """The compared vector from resid_mid `h`, with patched weights, (positions, width)."""
        pre, post = patched_block(self.block, h, update, apply)
        return pre if self.procedure.scope == "projection" else post

    def checks(self, positions: Sequence[int], shuffled: Activations | None) -> list[Check]:
        """The check of each position, with its controls."""
        expected, reached = self.context[self.compared], self.baseline[self.compared]
        if self.procedure.stream == "free":
            actual, unpatched = self.run(self.h, self.update, self.procedure.apply), reached
        else:
            nothing = self.update.without_weight().without_bias()
            actual, unpatched = reached, self.run(self.h, nothing, "factored")
        derived = tolerance(
            self.procedure.scope,
            self.procedure.dtype,
            self.h,
            self.context[Site(self.layer, "resid_mid")],
            expected,
        )
        controls, reasons = self.controls(positions, shuffled)
        return checks_of_layer(
            self.layer,
            positions,
            expected,
            actual,
            unpatched,
            bounds_of(self.procedure.tolerance, derived),
            controls,
            reasons,
        )

    def controls(
        self, positions: Sequence[int], shuffled: Activations | None
    ) -> tuple[dict[str, list[float | None]], dict[str, str]]:
        """Each control's relative error at each position, and why one could not be formed."""
        if not self.procedure.controls:
            return {}, {}
        update = self.update
        steered = self.context[Site(self.layer, "resid_mid")].double() - self.h.double()
        patched = {
            "without_bias": (self.h, update.without_bias()),
            "without_weight": (self.h, update.without_weight()),
            "random_update": (self.h, update.with_output(self._random(positions))),
            "bias_only_at_attention": (
                self.h + steered.to(self.h.dtype),
                update.without_weight().without_bias(),
            ),
        }
        reasons = {}
        if shuffled is None:
            reasons["shuffled_context"] = "no other order of the context reads differently"
        else:
            try:
                patched["shuffled_context"] = self.h, self.formed(shuffled)
            except (DependentRows, NonFinite) as error:
                reasons["shuffled_context"] = str(error)
        expected = self.context[self.compared]
        errors: dict[str, list[float | None]] = {
            name: [None] * len(positions) for name in CONTROLS[self.procedure.scope]
        }
        for name in errors.keys() & patched.keys():
            errors[name] = relative_errors(expected, self.run(*patched[name], "factored"))
        return errors, reasons

    def _random(self, positions: Sequence[int]) -> Tensor:
        """Output factors of ΔW in random directions, of the lengths that they have."""
        update = self.update
        weight = update.w_in if isinstance(update, JointUpdate) else update.weight
        rows = []
        for position in positions:
            generator = torch.Generator().manual_seed(SEED + 10_007 * self.layer + position)
            rows.append(
                torch.randn(weight.output.shape[-1], generator=generator, dtype=torch.float64)
            )
        direction = torch.nn.functional.normalize(torch.stack(rows), dim=-1).to(weight.output)
        output = direction * norm(weight.output).unsqueeze(-1).to(weight.output.dtype)
        if isinstance(update, JointUpdate):
            # Its input factors are not orthogonal, so equal rows are not yet an equal norm.
            output *= float(update.w_in.norm / update.with_output(output).w_in.norm)
        return output


def _shuffled(pair: Pair, layers: Sequence[int], procedure: Procedure) -> list[Run]:
    """The run that reads the context in another order, or none where no order differs."""
    first = int(pair.anchored)
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(pair.context) - first, generator=generator) + first
    shuffled = pair.reordered([*range(first), *order.tolist()])
    if shuffled.ids == pair.with_context.ids:
        # Moving the first token to the end changes every context but one of a single id.
        shuffled = pair.reordered([*range(first), *range(first + 1, len(pair.context)), first])
    if shuffled.ids == pair.with_context.ids:
        return []
    return [shuffled.run(pair.reads(layers, procedure.points), procedure.dtype)]
