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
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from schemas.activations import HookPoint
from schemas.common import UNSET
from schemas.equivalence_checks import Apply, Check, Scope
from schemas.pairs import Form, Stream
from service.analysis.factors import POINTS, layer_update, ratios
from service.analysis.pairs import Pair, gathered
from service.analysis.pieces import conditions_of, exists, most_entries, slices, update_cost
from service.analysis.unread import Part, Unread, read
from service.analysis.verdicts import GATES, bounds_of, checks_of_layer, compared
from service.engine import (
    Activations,
    Block,
    Model,
    Question,
    Run,
    Site,
    copied,
    numbers,
    patched_block,
)
from service.theory import (
    ImplicitUpdate,
    concatenated,
    discrepancy,
    magnitude,
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

PATCHED, UNPATCHED, BIAS_ONLY = "patched", "unpatched", "bias_only"
"""The cases that are no controls: the patch, no patch, and Δh at the attention output."""

MATERIALIZED = 64
"""Multiplications that take as long as forming one number of W + ΔW. Each position has a matrix of
its own, so this part takes a product for each position."""

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
    """

    scope: Scope = "block"
    dtype: torch.dtype = torch.float32
    stream: Stream = "free"
    tolerance: float | None = None
    apply: Apply = "materialized"
    form: Form = "bias"
    controls: bool = True

    @property
    def points(self) -> tuple[HookPoint, ...]:
        """The hook points that an update is formed from."""
        return POINTS[self.form]


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
    count = len(pair.positions)
    parts: list[Part] = []
    for layer in layers:
        block = model.blocks[layer].to(dtype)
        for rows in _slices(model, count, procedure):
            bench = _Bench(procedure, block, layer, _rows(context, rows), _rows(baseline, rows))
            other_order = None if shuffled is None else _rows(shuffled, rows)
            parts.append(bench.checks(pair.positions[rows], other_order))
            yield ()
    everything = [context, baseline, *([] if shuffled is None else [shuffled])]

    def whole(found: Sequence[Sequence[Check]]) -> list[Check]:
        return [check for of_part in found for check in of_part]

    (checks,) = yield from read(Unread(parts, whole, conditions_of(everything)))
    return list(checks)


def _slices(model: Model, count: int, procedure: Procedure) -> list[slice]:
    """The positions that are checked at a time."""
    block = model.blocks[0]
    product = update_cost(model) + block.w_out.width * model.d_mlp
    factored = (1 + len(CONTROLS["block"])) * product
    materialized = MATERIALIZED * product if procedure.apply == "materialized" else 0
    return slices(count, most_entries(model, factored + materialized))


def _rows(read: Activations, part: slice) -> Activations:
    """The activations at some of the positions."""
    return Activations({site: values[part] for site, values in read.items()}, read.conditions)


@dataclass(frozen=True)
class _Case:
    """One way to patch the rows: a name, resid_mid, mlp_in, and the patch."""

    name: str
    h: Tensor
    n: Tensor
    update: ImplicitUpdate


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
        self.update, formed = self.formed(context)
        self.conditions = [exists(formed)]
        # The streams before attention are equal below the first layer, or below patched ones.
        self.no_weight = block.parallel and (layer == 0 or procedure.stream == "sequential")

    def formed(self, context: Activations) -> tuple[ImplicitUpdate, Tensor]:
        """Form the update that makes the baseline read as `context` does, with its magnitudes."""
        form = self.procedure.form
        update = layer_update(self.layer, context, self.baseline, self.block, form)
        return update.to(self.h.dtype), magnitude(update)

    def compared(self, read: Activations) -> Tensor:
        """The compared vector of a run, (positions, width)."""
        points = compared_points(self.block, self.procedure.scope)
        return torch.cat([read[Site(self.layer, point)] for point in points], -1)

    def run(self, case: _Case, apply: Apply) -> Tensor:
        """The compared vector with patched weights, (positions, width)."""
        pre, post = patched_block(self.block, case.h, case.n, case.update, apply)
        return pre if self.procedure.scope == "projection" else post

    def run_all(self, cases: Sequence[_Case]) -> dict[str, Tensor]:
        """The compared vector of each case, its weights applied as factors.

        They are computed side by side, those with and those without a change of the second weight.
        """
        found: dict[str, Tensor] = {}
        alike: dict[bool, list[_Case]] = {True: [], False: []}
        for case in cases:
            alike[case.update.out is None].append(case)
        for group in filter(None, alike.values()):
            h = torch.cat([case.h for case in group])
            n = torch.cat([case.n for case in group])
            updates = concatenated([case.update for case in group])
            outputs = self.run(_Case("", h, n, updates), "factored").chunk(len(group))
            found |= {case.name: output for case, output in zip(group, outputs, strict=True)}
        return found

    def checks(self, positions: Sequence[int], shuffled: Activations | None) -> Part:
        """Check each position, with its controls."""
        expected, reached = self.compared(self.context), self.compared(self.baseline)
        cases, reasons, other_magnitudes = self.controls(positions, shuffled)
        mine = _Case(PATCHED, self.h, self.n, self.update)
        free = self.procedure.stream == "free"
        if not free:
            nothing = self.update.without_weight().without_bias()
            cases.append(_Case(UNPATCHED, self.h, self.n, nothing))
        elif self.procedure.apply == "factored":
            cases.append(mine)
        found = self.run_all(cases)
        if free and self.procedure.apply != "factored":
            found[PATCHED] = self.run(mine, self.procedure.apply)
        actual, unpatched = (found[PATCHED], reached) if free else (reached, found[UNPATCHED])
        derived = tolerance(
            GATES[self.procedure.scope, self.procedure.dtype],
            self.h,
            self.context[Site(self.layer, "resid_mid")],
            expected,
        )
        bounds = bounds_of(self.procedure.tolerance, derived)
        tensors = [compared(expected, actual, unpatched, bounds), other_magnitudes]
        names = [case.name for case in cases if case.name not in (PATCHED, UNPATCHED)]
        if names:
            outputs = torch.stack([found[name] for name in names])
            tensors.append(discrepancy(expected, outputs).relative_error)

        def finish(host: Sequence[Tensor]) -> list[Check]:
            figures, magnitudes, *errors = map(numbers, host)
            is_formed = all(map(isfinite, magnitudes))
            known = dict(zip(names, map(ratios, *errors), strict=True)) if names else {}
            return self._finished(positions, figures, known, dict(reasons), is_formed)

        return Part(tensors, finish, self.conditions)

    def _finished(
        self,
        positions: Sequence[int],
        figures: Sequence[Sequence[float]],
        errors: Mapping[str, list[float | None]],
        reasons: dict[str, str],
        shuffled_exists: bool,
    ) -> list[Check]:
        """Form the checks of the positions from numbers.

        Args:
            positions: Indices into the query.
            figures: Those of `compared` at each position.
            errors: Relative errors of each control that was run.
            reasons: Reason for each control that was not.
            shuffled_exists: Whether the update of the shuffled context exists.
        """
        nothing: list[float | None] = [None] * len(positions)
        controls: dict[str, list[float | None]] = {}
        if self.procedure.controls:
            controls = {name: errors.get(name, nothing) for name in CONTROLS[self.procedure.scope]}
        if "shuffled_context" in errors and not shuffled_exists:
            controls["shuffled_context"] = nothing
            reasons["shuffled_context"] = "The update of the shuffled context is not finite."
        return checks_of_layer(
            self.layer,
            positions,
            figures,
            self.procedure.dtype,
            controls,
            {name: reason for name, reason in reasons.items() if name in controls},
            errors.get(BIAS_ONLY, nothing) if self.procedure.controls else UNSET,
            PARALLEL if self.no_weight and self.procedure.scope == "projection" else UNSET,
        )

    def controls(
        self, positions: Sequence[int], shuffled: Activations | None
    ) -> tuple[list[_Case], dict[str, str], Tensor]:
        """The controls that can be run, the reason for each other one, and the magnitudes of the
        shuffled context's updates."""
        update = self.update
        patches: dict[str, ImplicitUpdate] = {}
        reasons: dict[str, str] = {}
        magnitudes = self.h.new_ones(len(positions))
        if not self.procedure.controls:
            return [], reasons, magnitudes
        patches["without_bias"] = update.without_bias()
        if self.no_weight:
            reasons |= dict.fromkeys(("without_weight", "random_update"), PARALLEL)
        else:
            patches["without_weight"] = update.without_weight()
            patches["random_update"] = update.with_output(self._random(positions))
        if self.no_weight and self.layer == 0 and self.procedure.scope == "projection":
            reasons["shuffled_context"] = PARALLEL
        elif shuffled is None:
            reasons["shuffled_context"] = "No other order of the context has other tokens."
        else:
            patches["shuffled_context"], magnitudes = self.formed(shuffled)
        named = CONTROLS[self.procedure.scope]
        cases = [_Case(name, self.h, self.n, patches[name]) for name in named if name in patches]
        if not self.block.parallel:
            cases.append(self._attention_shifted())
        return cases, reasons, magnitudes

    def _attention_shifted(self) -> _Case:
        """Δh at the attention output and no ΔW, which is exact too. The MLP of a parallel block
        does not read that output."""
        h = self.context[Site(self.layer, "resid_mid")].double()
        h = self.h + (h - self.h.double()).to(self.h.dtype)
        nothing = self.update.without_weight().without_bias()
        return _Case(BIAS_ONLY, h, self.block.pre_mlp(h), nothing)

    def _random(self, positions: Sequence[int]) -> Tensor:
        """Draw output factors of ΔW in random directions, with the lengths of the real ones."""
        weight = self.update.weight
        direction = random_directions(self.layer, positions, weight.output.shape[-1])
        direction = copied(direction.to(weight.output.dtype), weight.output.device)
        return direction * norm(weight.output).unsqueeze(-1).to(weight.output.dtype)


def random_directions(layer: int, positions: Sequence[int], width: int) -> Tensor:
    """A random vector of length 1 for each position, on the host, (positions, width)."""
    # NumPy draws on the host, so torch launches as much for many positions as for one.
    rows = [
        np.random.default_rng((SEED, layer, position)).standard_normal(width)
        for position in positions
    ]
    return torch.nn.functional.normalize(torch.from_numpy(np.stack(rows)), dim=-1)


def _shuffled(pair: Pair, layers: Sequence[int], procedure: Procedure) -> list[Run]:
    """The run that reads the context in another order, or none if no order differs."""
    first = pair.beginning
    if len(pair.context) - first < 2:
        return []
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(pair.context) - first, generator=generator) + first
    shuffled = pair.reordered([*range(first), *numbers(order)])
    if shuffled.ids == pair.with_context.ids:
        # Moving the first token to the end changes every context but one of equal ids.
        shuffled = pair.reordered([*range(first), *range(first + 1, len(pair.context)), first])
    if shuffled.ids == pair.with_context.ids:
        return []
    return [shuffled.run(pair.reads(layers, procedure.points), procedure.dtype)]
