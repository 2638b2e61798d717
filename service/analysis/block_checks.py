"""Block checks: the baseline run with patched weights against the run with context.

A check that holds shows that the algebra and the code are right, not that "the MLP learns": adding
Δh to the attention output is exact as well. Its error is reported beside the check. So each check
has the error of the unpatched run, and controls whose errors must be far larger.

In the free stream a layer is patched on top of the ordinary baseline run. In the sequential stream
(arXiv 2511.17864) the layers below are patched too; the checked vector is the patched run's own,
and the unpatched vector is that of this layer without its own patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.activations import HookPoint
from schemas.common import UNSET, Unset
from schemas.equivalence_checks import Apply, Check, Scope
from schemas.pairs import Form, Stream
from service.analysis.factors import POINTS, joint_layer_update, layer_update
from service.analysis.pairs import Pair, gathered, position_slices
from service.analysis.verdicts import GATES, bounds_of, checks_of_layer, relative_errors
from service.engine import Activations, Block, Model, Question, Run, Site, patched_block
from service.theory import (
    DependentRows,
    ImplicitUpdate,
    JointUpdate,
    NonFinite,
    norm,
    tolerance,
)

SEED = 20251216
"""Seed of the random update and the shuffled context. A layer and a position add to it."""

CONTROLS: Mapping[Scope, tuple[str, ...]] = {
    "projection": ("random_update", "shuffled_context"),
    "block": ("without_bias", "without_weight", "random_update", "shuffled_context"),
}
"""The controls of each scope. Δh acts after the projection, so `projection` has fewer."""

PARALLEL = (
    "The MLP of a parallel block reads the stream before attention, which both runs share here. So "
    "ΔW is zero by theorem, and Δh is the whole update."
)


@dataclass(frozen=True)
class Procedure:
    """How a check is made.

    Args:
        scope: The compared vector.
        dtype: The dtype of every run and every patch.
        stream: Whether the layers below are patched too.
        tolerance: The relative error up to which a check holds; None derives it.
        apply: How W + ΔW is applied.
        form: The carrier of Δh in the patch.
        controls: Whether to run the controls.
        joint: Whether one patch serves all positions, in the free stream only.
    """

    scope: Scope = "block"
    dtype: torch.dtype = torch.float32
    stream: Stream = "free"
    tolerance: float | None = None
    apply: Apply = "materialized"
    form: Form = "bias"
    controls: bool = True
    joint: bool = False

    @property
    def points(self) -> tuple[HookPoint, ...]:
        """The hook points that an update is formed from."""
        return POINTS["weights"] if self.joint else POINTS[self.form]


def compared_points(block: Block, scope: Scope) -> tuple[HookPoint, ...]:
    """The hook points whose vectors, side by side, a scope compares."""
    return block.pre_points if scope == "projection" else ("resid_post",)


def block_checks(
    model: Model, pair: Pair, layers: Sequence[int], procedure: Procedure
) -> Question[list[Check]]:
    """Check each layer at each requested position.

    Args:
        model: The resident model.
        pair: The run with context and its baseline.
        layers: Layers from 0.
        procedure: How the check is made.
    """
    points = (*procedure.points, *compared_points(model.blocks[0], procedure.scope))
    dtype, form = procedure.dtype, procedure.form
    base = pair.baseline_runs(layers, points, procedure.stream, dtype, procedure.apply, form)
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
    return checks


def _rows(read: Activations, part: slice) -> Activations:
    """The activations at some of the positions."""
    return {site: values[part] for site, values in read.items()}


class _Bench:
    """One layer: its activations in both runs, and its block, ready to be patched."""

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
        self.h, self.n = baseline[Site(layer, "resid_mid")], baseline[Site(layer, "mlp_in")]
        self.update = self.formed(context)
        # The streams before attention are equal below the first layer, or below patched ones.
        self.no_weight = block.parallel and (layer == 0 or procedure.stream == "sequential")

    def formed(self, context: Activations) -> ImplicitUpdate | JointUpdate:
        """Form the update that makes the baseline read as `context` does."""
        runs = (self.layer, context, self.baseline, self.block)
        if self.procedure.joint:
            return joint_layer_update(*runs).to(self.h.dtype)
        return layer_update(*runs, self.procedure.form).to(self.h.dtype)

    def compared(self, read: Activations) -> Tensor:
        """The compared vector of a run, (positions, width)."""
        points = compared_points(self.block, self.procedure.scope)
        return torch.cat([read[Site(self.layer, point)] for point in points], -1)

    def run(
        self, h: Tensor, n: Tensor, update: ImplicitUpdate | JointUpdate, apply: Apply
    ) -> Tensor:
        """The compared vector from resid_mid and mlp_in, with patched weights, (positions, …)."""
        pre, post = patched_block(self.block, h, n, update, apply)
        return pre if self.procedure.scope == "projection" else post

    def checks(self, positions: Sequence[int], shuffled: Activations | None) -> list[Check]:
        """Check each position, with its controls."""
        expected, reached = self.compared(self.context), self.compared(self.baseline)
        if self.procedure.stream == "free":
            actual, unpatched = self.run(self.h, self.n, self.update, self.procedure.apply), reached
        else:
            nothing = self.update.without_weight().without_bias()
            actual, unpatched = reached, self.run(self.h, self.n, nothing, "factored")
        derived = tolerance(
            GATES[self.procedure.scope, self.procedure.dtype],
            self.h,
            self.context[Site(self.layer, "resid_mid")],
            expected,
        )
        controls, reasons, bias_only = self.controls(positions, shuffled)
        return checks_of_layer(
            self.layer,
            positions,
            expected,
            actual,
            unpatched,
            bounds_of(self.procedure.tolerance, derived),
            controls,
            reasons,
            bias_only,
            PARALLEL if self.no_weight and self.procedure.scope == "projection" else UNSET,
        )

    def controls(
        self, positions: Sequence[int], shuffled: Activations | None
    ) -> tuple[dict[str, list[float | None]], dict[str, str], list[float | None] | Unset]:
        """Each control's relative error at each position, the reason for each that is missing, and
        the error with Δh at the attention output and no ΔW, which is exact too."""
        if not self.procedure.controls:
            return {}, {}, UNSET
        update = self.update
        patched: dict[str, ImplicitUpdate | JointUpdate] = {"without_bias": update.without_bias()}
        reasons: dict[str, str] = {}
        if self.no_weight:
            reasons |= dict.fromkeys(("without_weight", "random_update"), PARALLEL)
        else:
            patched["without_weight"] = update.without_weight()
            patched["random_update"] = update.with_output(self._random(positions))
        if self.no_weight and self.layer == 0 and self.procedure.scope == "projection":
            reasons["shuffled_context"] = PARALLEL
        elif shuffled is None:
            reasons["shuffled_context"] = "No other order of the context has other tokens."
        else:
            try:
                patched["shuffled_context"] = self.formed(shuffled)
            except (DependentRows, NonFinite) as error:
                reasons["shuffled_context"] = str(error)
        expected = self.compared(self.context)
        nothing: list[float | None] = [None] * len(positions)
        errors = dict.fromkeys(CONTROLS[self.procedure.scope], nothing)
        for name in errors.keys() & patched.keys():
            errors[name] = relative_errors(
                expected, self.run(self.h, self.n, patched[name], "factored")
            )
        reasons = {name: reason for name, reason in reasons.items() if name in errors}
        return errors, reasons, self._attention_shifted(expected)

    def _attention_shifted(self, expected: Tensor) -> list[float | None]:
        """The error with Δh at the attention output and no ΔW; None for a parallel block, whose MLP
        does not read that output."""
        if self.block.parallel:
            return [None] * len(expected)
        h = self.context[Site(self.layer, "resid_mid")].double()
        h = self.h + (h - self.h.double()).to(self.h.dtype)
        nothing = self.update.without_weight().without_bias()
        return relative_errors(expected, self.run(h, self.block.pre_mlp(h), nothing, "factored"))

    def _random(self, positions: Sequence[int]) -> Tensor:
        """Draw output factors of ΔW in random directions, with the lengths of the real ones."""
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
            # The input factors are not orthogonal, so rows of equal norm do not give an equal norm.
            output *= float(update.w_in.norm / update.with_output(output).w_in.norm)
        return output


def _shuffled(pair: Pair, layers: Sequence[int], procedure: Procedure) -> list[Run]:
    """The run that reads the context in another order, or none if no order differs."""
    first = pair.beginning
    if len(pair.context) - first < 2:
        return []
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(pair.context) - first, generator=generator) + first
    shuffled = pair.reordered([*range(first), *order.tolist()])
    if shuffled.ids == pair.with_context.ids:
        # Moving the first token to the end changes every context but one of equal ids.
        shuffled = pair.reordered([*range(first), *range(first + 1, len(pair.context)), first])
    if shuffled.ids == pair.with_context.ids:
        return []
    return [shuffled.run(pair.reads(layers, procedure.points), procedure.dtype)]
