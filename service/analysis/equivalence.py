"""Equivalence checks: the baseline run with patched weights against the run with context.

A passing check proves the plumbing and the algebra, not that "the MLP learns": adding Δh to the
attention output is exact as well, and is given as a control. So each check carries the error of the
unpatched run, and controls that must be far worse than the patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.analysis.numbers import ratios
from service.analysis.pairs import Pair
from service.analysis.updates import layer_update
from service.engine import (
    Activations,
    Apply,
    HookPoint,
    Model,
    Question,
    Run,
    Site,
    patched_mlp_pre,
    patched_resid_post,
)
from service.engine.families import Block
from service.theory import (
    ImplicitUpdate,
    RankOne,
    Scope,
    Verdict,
    discrepancy,
    improvement,
    norm,
    tolerance,
    verdict,
)

SEED = 20251216
"""Of the random update and of the shuffled context; a layer and a position add to it."""

COMPARED: Mapping[Scope, HookPoint] = {"projection": "mlp_pre", "block": "resid_post"}
"""The vector that each scope compares."""

CONTROLS: Mapping[Scope, tuple[str, ...]] = {
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
class Check:
    """One layer at one position.

    Args:
        layer: From 0 up.
        position: Index into the query.
        magnitude: ‖expected‖ of the compared vector, as the run with context has it.
        error: ‖actual − expected‖.
        relative_error: error / magnitude.
        max_abs_error: max |actual − expected|.
        tolerance: The relative error up to which the check holds.
        unpatched_relative_error: The baseline run's own, without any patch.
        improvement: Unpatched / patched error, the latter at least the dtype's ε.
        vacuous: Whether the unpatched run is within ten tolerances, so that nothing can be told.
        verdict: `holds`, `fails` or `vacuous`.
        holds: Whether the verdict is the first.
        controls: Relative errors of runs that are patched otherwise, where asked for.
        control_reasons: Why a control could not be formed, where one could not.
    """

    layer: int
    position: int
    magnitude: float
    error: float
    relative_error: float | None
    max_abs_error: float
    tolerance: float
    unpatched_relative_error: float | None
    improvement: float | None
    vacuous: bool
    verdict: Verdict
    holds: bool
    controls: dict[str, float | None] | None = None
    control_reasons: dict[str, str] | None = None


def equivalence_checks(
    model: Model,
    pair: Pair,
    layers: Sequence[int],
    scope: Scope,
    dtype: torch.dtype,
    allowed: float | None,
    apply: Apply,
    controls: bool,
) -> Question[tuple[Check, ...]]:
    """Check each layer at each asked position, free stream.

    Args:
        model: The resident model.
        pair: The run with context and its baseline.
        layers: From 0 up.
        scope: What is compared.
        dtype: What every run and every patch is computed in.
        allowed: The tolerance; None derives it.
        apply: How W + ΔW is applied.
        controls: Whether to run the controls.
    """
    reads = pair.reads(layers, ("mlp_in", "resid_mid", COMPARED[scope]))
    runs = [pair.with_context.run(reads, dtype), pair.baseline.run(reads, dtype)]
    if controls:
        runs += _shuffled(pair, layers, dtype)
    context, baseline, *shuffled = yield runs
    checks: list[Check] = []
    for layer in layers:
        bench = _Bench(model.blocks[layer].to(dtype), layer, scope, context, baseline)
        reasons: dict[str, str] = {}
        others: dict[str, list[float | None]] = {}
        if controls:
            others = bench.controls(pair.positions, shuffled[0] if shuffled else None)
            if not shuffled:
                reasons["shuffled_context"] = "no other order of the context reads differently"
        checks += bench.checks(pair.positions, allowed, apply, others, reasons)
    return tuple(checks)


class _Bench:
    """One layer, the two readings of it, and its block, ready to be patched."""

    def __init__(
        self, block: Block, layer: int, scope: Scope, context: Activations, baseline: Activations
    ) -> None:
        compared = Site(layer, COMPARED[scope])
        self.block, self.layer, self.scope = block, layer, scope
        self.h, self.h_context = (run[Site(layer, "resid_mid")] for run in (baseline, context))
        self.n, self.baseline = baseline[Site(layer, "mlp_in")], baseline
        self.expected, self.unpatched = context[compared], baseline[compared]
        self.update = layer_update(layer, context, baseline, block.w_in.weight).to(self.h.dtype)

    def run(self, h: Tensor, update: ImplicitUpdate, apply: Apply) -> Tensor:
        """The compared vector from resid_mid `h`, with patched weights, (positions, width)."""
        if self.scope == "projection":
            return patched_mlp_pre(self.block, self.block.ln_2(h), update.weight, apply)
        return patched_resid_post(self.block, h, update.weight, update.bias, apply)

    def checks(
        self,
        positions: Sequence[int],
        allowed: float | None,
        apply: Apply,
        controls: Mapping[str, Sequence[float | None]],
        reasons: dict[str, str],
    ) -> list[Check]:
        """The verdict at each position."""
        dtype = self.h.dtype
        found = discrepancy(self.expected, self.run(self.h, self.update, apply))
        unpatched = discrepancy(self.expected, self.unpatched).relative_error
        bounds = tolerance(self.scope, dtype, self.h, self.h_context, self.expected)
        checks = []
        for i, position in enumerate(positions):
            bound = float(bounds[i]) if allowed is None else allowed
            error, without = float(found.relative_error[i]), float(unpatched[i])
            told = verdict(error, without, bound)
            checks.append(
                Check(
                    layer=self.layer,
                    position=position,
                    magnitude=float(found.magnitude[i]),
                    error=float(found.error[i]),
                    relative_error=ratios(found.relative_error)[i],
                    max_abs_error=float(found.max_abs_error[i]),
                    tolerance=bound,
                    unpatched_relative_error=ratios(unpatched)[i],
                    improvement=improvement(error, without, dtype),
                    vacuous=told == "vacuous",
                    verdict=told,
                    holds=told == "holds",
                    controls={name: errors[i] for name, errors in controls.items()} or None,
                    control_reasons=reasons or None,
                )
            )
        return checks

    def controls(
        self, positions: Sequence[int], shuffled: Activations | None
    ) -> dict[str, list[float | None]]:
        """Each control's relative error at each position; None for one that cannot be formed."""
        update, none = self.update, torch.zeros_like(self.h)
        unweighted = RankOne(none, torch.zeros_like(update.weight.output))
        patched: dict[str, tuple[Tensor, ImplicitUpdate]] = {
            "without_bias": (self.h, ImplicitUpdate(update.weight, none)),
            "without_weight": (self.h, ImplicitUpdate(unweighted, update.bias)),
            "random_update": (
                self.h,
                ImplicitUpdate(self._random(positions), update.bias),
            ),
            "bias_only_at_attention": (
                self.h + update.bias,
                ImplicitUpdate(unweighted, none),
            ),
        }
        if shuffled is not None:
            other = layer_update(self.layer, shuffled, self.baseline, self.block.w_in.weight)
            patched["shuffled_context"] = self.h, other.to(self.h.dtype)
        return {
            name: self._errors(*patched[name]) if name in patched else [None] * len(positions)
            for name in CONTROLS[self.scope]
        }

    def _errors(self, h: Tensor, update: ImplicitUpdate) -> list[float | None]:
        actual = self.run(h, update, "factored")
        return ratios(discrepancy(self.expected, actual).relative_error)

    def _random(self, positions: Sequence[int]) -> RankOne:
        """The input factor kept; the output factor in a random direction, of equal norm."""
        output = self.update.weight.output
        rows = []
        for position in positions:
            generator = torch.Generator().manual_seed(SEED + 10_007 * self.layer + position)
            rows.append(torch.randn(output.shape[-1], generator=generator, dtype=torch.float64))
        direction = torch.nn.functional.normalize(torch.stack(rows), dim=-1).to(output)
        length = norm(output).unsqueeze(-1).to(output.dtype)
        return RankOne(self.update.weight.input, direction * length)


def _shuffled(pair: Pair, layers: Sequence[int], dtype: torch.dtype) -> list[Run]:
    """The run that reads the context in another order, or none where no order differs."""
    first = int(pair.anchored)
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(pair.context) - first, generator=generator) + first
    shuffled = pair.reordered([*range(first), *order.tolist()])
    if shuffled.ids == pair.with_context.ids:
        shuffled = pair.reordered([*range(first), *range(len(pair.context) - 1, first - 1, -1)])
    if shuffled.ids == pair.with_context.ids:
        return []
    return [shuffled.run(pair.reads(layers, ("mlp_in", "resid_mid")), dtype)]


def worst(checks: Sequence[Check]) -> Verdict:
    """One verdict for all: `fails` before `vacuous` before `holds`."""
    verdicts = {check.verdict for check in checks}
    return "fails" if "fails" in verdicts else "vacuous" if "vacuous" in verdicts else "holds"
