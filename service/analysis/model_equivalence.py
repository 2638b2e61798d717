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

from service.analysis.equivalence import Procedure
from service.analysis.factors import layer_update
from service.analysis.next_tokens import LikelyToken, likeliest
from service.analysis.numbers import ratios
from service.analysis.pairs import Pair, gathered
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
        tolerance: The relative error up to which the check holds.
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


def model_equivalence(
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
    logits = Site(model.n_layers, "logits")
    reads = pair.reads(every, POINTS) | {logits: pair.positions}
    following = [
        replace(run, reads=dict(run.reads) | {logits: next(iter(run.reads.values()))})
        for run in pair.baseline_runs(every, POINTS, "sequential", dtype, procedure.apply)
    ]
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
        if site.layer == 0 or model.n_layers == 1:
            alike = "below the first layer nothing is patched, so both streams give the same update"
            return {CONTROL: [None] * len(pair.positions)}, {CONTROL: alike}
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
    return tuple(check for layer in layers for check in checks[layer]), tuple(
        _logits_checks(
            model,
            pair.positions,
            (context[logits], patched[logits], plain[logits]),
            bounds,
            *controls(logits),
        )
    )


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
    model: Model,
    positions: Sequence[int],
    logits: tuple[Tensor, Tensor, Tensor],
    bounds: Tensor,
    controls: dict[str, list[float | None]],
    reasons: dict[str, str],
) -> list[LogitsCheck]:
    """One check a position, from the logits with context, patched and without context."""
    context, patched, plain = logits
    found, bare = discrepancy(context, patched), discrepancy(context, plain)
    divergence, unpatched = kl_divergence(context, patched), kl_divergence(context, plain)
    same = context.argmax(-1) == patched.argmax(-1)
    top = [likeliest(model, rows) for rows in logits]
    checks = []
    for i, position in enumerate(positions):
        allowed = kl_gate(context.dtype)
        told = verdict(
            float(found.relative_error[i]), float(bare.relative_error[i]), float(bounds[i])
        )
        if float(divergence[i]) > allowed or not bool(same[i]):
            told = "fails"
        checks.append(
            LogitsCheck(
                position=position,
                relative_error=ratios(found.relative_error)[i],
                max_abs_error=float(found.max_abs_error[i]),
                tolerance=float(bounds[i]),
                unpatched_relative_error=ratios(bare.relative_error)[i],
                kl_divergence=float(divergence[i]),
                kl_tolerance=allowed,
                unpatched_kl_divergence=float(unpatched[i]),
                same_top_token=bool(same[i]),
                verdict=told,
                holds=told == "holds",
                top_tokens=TopTokens(*(tokens[i] for tokens in top)),
                controls={name: errors[i] for name, errors in controls.items()} or None,
                control_reasons=reasons or None,
            )
        )
    return checks
