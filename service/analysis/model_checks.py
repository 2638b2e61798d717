"""The check of the whole model: every block patched in turn, then the logits.

Each asked position has a patched run of its own in the sequential stream. Its block outputs and
its logits must be those of the run with context; the unpatched ones are the ordinary baseline
run's. The control applies all updates of the free stream together, which do not compose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from service.analysis.block_checks import Procedure
from service.analysis.factors import layer_update
from service.analysis.next_tokens import LikelyToken, last_site, likeliest, unembedded
from service.analysis.numbers import finite
from service.analysis.pairs import Pair, gathered, position_slices
from service.analysis.verdicts import Check, bounds_of, checks_of_layer, relative_errors
from service.engine import Activations, Fixed, HookPoint, Model, Question, Run, Site
from service.theory import (
    ImplicitUpdate,
    Verdict,
    discrepancy,
    gate,
    kl_divergence,
    kl_gate,
    tolerance,
    verdict,
)

CONTROL = "free_stream_patches"
ALIKE = "below the first layer nothing is patched, so both streams give the same update"
POINTS: tuple[HookPoint, ...] = ("mlp_in", "resid_mid", "resid_post")


@dataclass(frozen=True)
class TopTokens:
    """The likeliest next tokens of the three runs."""

    with_context: Sequence[LikelyToken]
    patched: Sequence[LikelyToken]
    without_context: Sequence[LikelyToken]


@dataclass(frozen=True)
class LogitsCheck:
    """The logits after one query position.

    Args:
        position: Index into the query.
        relative_error: ‖patched − with context‖ / ‖with context‖.
        max_abs_error: max |patched − with context|.
        tolerance: The relative error up to which the check holds: the logits' gate × the largest
            factor that any block's tolerance has.
        unpatched_relative_error: The ordinary baseline run's.
        kl_divergence: KL(with context ‖ patched) in nats.
        kl_tolerance: The divergence up to which the check holds.
        unpatched_kl_divergence: KL(with context ‖ baseline).
        same_top_token: Whether the likeliest token is the same; the check needs it.
        verdict: `holds`, `fails` or `vacuous`.
        holds: Whether the verdict is the first.
        top_tokens: The likeliest tokens of the three runs.
        controls: Relative errors of runs that are patched otherwise, where asked for.
        control_reasons: Why a control could not be formed, where one could not.
    """

    position: int
    relative_error: float | None
    max_abs_error: float
    tolerance: float
    unpatched_relative_error: float | None
    kl_divergence: float
    kl_tolerance: float
    unpatched_kl_divergence: float
    same_top_token: bool
    verdict: Verdict
    holds: bool
    top_tokens: TopTokens
    controls: dict[str, float | None] | None = None
    control_reasons: dict[str, str] | None = None


def model_checks(
    model: Model, pair: Pair, layers: Sequence[int], procedure: Procedure
) -> Question[tuple[tuple[Check, ...], tuple[LogitsCheck, ...]]]:
    """Check every named block's output, and the logits, at each asked position.

    Args:
        model: The resident model.
        pair: The run with context and its baseline.
        layers: The blocks that are reported; all of them are patched.
        procedure: How; of its scope and stream nothing is read.
    """
    every, dtype = range(model.n_layers), procedure.dtype
    reads = pair.reads(every, POINTS)
    following = pair.baseline_runs(every, POINTS, "sequential", dtype, procedure.apply)
    context, plain, *followed = yield [
        pair.with_context.run(reads, dtype),
        pair.baseline.run(reads, dtype),
        *following,
    ]
    patched = gathered(followed)
    together: Activations | None = None
    if procedure.controls:
        together = gathered((yield _free_patches(model, pair, context, plain, following)))

    def controls(site: Site) -> tuple[dict[str, list[float | None]], dict[str, str]]:
        if together is None:
            return {}, {}
        if site.layer == 0:
            return {CONTROL: [None] * len(pair.positions)}, {CONTROL: ALIKE}
        return {CONTROL: relative_errors(context[site], together[site])}, {}

    checks: dict[int, list[Check]] = {}
    largest = torch.ones(len(pair.positions), dtype=torch.float64, device=model.device)
    for layer in every:
        h, post = Site(layer, "resid_mid"), Site(layer, "resid_post")
        derived = tolerance("block", dtype, patched[h], context[h], context[post])
        largest = largest.maximum(derived / gate("block", dtype))
        if layer in layers:
            checks[layer] = checks_of_layer(
                layer,
                pair.positions,
                context[post],
                patched[post],
                plain[post],
                bounds_of(procedure.tolerance, derived),
                *controls(post),
            )
    bounds = bounds_of(procedure.tolerance, gate("model", dtype) * largest)
    logits: list[LogitsCheck] = []
    site = last_site(model)
    runs = (context, patched, plain) if together is None else (context, patched, plain, together)
    for part in position_slices(len(pair.positions)):
        rows = [unembedded(model, run[site][part]) for run in runs]
        logits += _logits_checks(model, pair.positions[part], rows, bounds[part])
        yield ()
    return tuple(check for layer in layers for check in checks[layer]), tuple(logits)


def _free_patches(
    model: Model,
    pair: Pair,
    context: Activations,
    plain: Activations,
    following: Sequence[Run],
) -> list[Run]:
    """The baseline run of each position with every layer's free-stream update at once."""
    updates = {
        layer: layer_update(layer, context, plain, _w_in(model, layer, context))
        for layer in range(model.n_layers)
    }
    return [
        replace(
            run,
            patch=Fixed(
                {
                    layer: ImplicitUpdate(update.weight[i], update.bias[i])
                    for layer, update in updates.items()
                }
            ),
        )
        for i, run in enumerate(following)
    ]


def _w_in(model: Model, layer: int, context: Activations) -> Tensor:
    """The first MLP weight of a layer, in the dtype of a run, (d_model, d_mlp)."""
    return model.blocks[layer].w_in.weight.to(context[Site(layer, "mlp_in")].dtype)


def _logits_checks(
    model: Model, positions: Sequence[int], logits: Sequence[Tensor], bounds: Tensor
) -> list[LogitsCheck]:
    """One check a position, from the logits with context, patched, without, and controlled."""
    context, patched, plain, *controlled = logits
    found, bare = discrepancy(context, patched), discrepancy(context, plain)
    allowed = kl_gate(context.dtype)
    controls: list[float | None] = [None] * len(positions)
    if controlled and model.n_layers > 1:
        controls = relative_errors(context, controlled[0])
    columns = zip(
        positions,
        found.relative_error.tolist(),
        found.max_abs_error.tolist(),
        bounds.tolist(),
        bare.relative_error.tolist(),
        kl_divergence(context, patched).tolist(),
        kl_divergence(context, plain).tolist(),
        (context.argmax(-1) == patched.argmax(-1)).tolist(),
        zip(*(likeliest(model, rows) for rows in (context, patched, plain)), strict=True),
        controls,
        strict=True,
    )
    checks = []
    for position, error, largest, bound, without, kl, kl_without, same, top, control in columns:
        told = verdict(error, without, bound) if kl <= allowed and same else "fails"
        checks.append(
            LogitsCheck(
                position=position,
                relative_error=finite(error),
                max_abs_error=largest,
                tolerance=bound,
                unpatched_relative_error=finite(without),
                kl_divergence=kl,
                kl_tolerance=allowed,
                unpatched_kl_divergence=kl_without,
                same_top_token=same,
                verdict=told,
                holds=told == "holds",
                top_tokens=TopTokens(*top),
                controls={CONTROL: control} if controlled else None,
                control_reasons={CONTROL: ALIKE} if controlled and control is None else None,
            )
        )
    return checks
