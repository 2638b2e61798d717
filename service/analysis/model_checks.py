"""Model checks: every block patched in sequence, then the logits.

Each requested position has a patched run of its own in the sequential stream (Goldwaser et al.,
arXiv 2511.17864). Its block outputs and its logits must be those of the run with context. The
unpatched ones are the ordinary baseline run's. The control applies all updates of the free stream
at once, which do not compose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from schemas.common import UNSET
from schemas.equivalence_checks import Check, LogitsCheck, TopTokens
from schemas.pairs import Form
from service.analysis.block_checks import Procedure
from service.analysis.factors import POINTS, finite, layer_update
from service.analysis.next_tokens import last_site, likeliest, unembedded
from service.analysis.pairs import Pair, gathered, position_slices
from service.analysis.verdicts import (
    GATES,
    KL_GATES,
    bounds_of,
    checks_of_layer,
    relative_errors,
    verdict,
)
from service.engine import Activations, Fixed, Model, Question, Run, Site
from service.theory import discrepancy, kl_divergence, tolerance

CONTROL = "free_stream_patches"
ALIKE = "No layer below the first is patched, so both streams have the same update."


def model_checks(
    model: Model, pair: Pair, layers: Sequence[int], procedure: Procedure
) -> Question[tuple[list[Check], list[LogitsCheck]]]:
    """Check the output of blocks, and the logits, at each requested position.

    Args:
        model: The resident model.
        pair: The run with context and its baseline.
        layers: The reported blocks. All blocks are patched.
        procedure: How the check is made. Its scope and stream are ignored.
    """
    every, dtype = range(model.n_layers), procedure.dtype
    form, points = procedure.form, (*POINTS["bias"], "resid_post")
    reads = pair.reads(every, points)
    following = pair.baseline_runs(every, points, "sequential", dtype, procedure.apply, form)
    context, plain, *followed = yield [
        pair.with_context.run(pair.reads(every, (*POINTS[form], "resid_post")), dtype),
        pair.baseline.run(reads, dtype),
        *following,
    ]
    patched = gathered(followed)
    together: Activations | None = None
    if procedure.controls:
        together = gathered((yield _free_patches(model, form, context, plain, following)))

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
        derived = tolerance(GATES["block", dtype], patched[h], context[h], context[post])
        largest = largest.maximum(derived / GATES["block", dtype])
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
    bounds = bounds_of(procedure.tolerance, GATES["model", dtype] * largest)
    logits: list[LogitsCheck] = []
    site = last_site(model)
    runs = (context, patched, plain) if together is None else (context, patched, plain, together)
    for part in position_slices(len(pair.positions)):
        rows = [unembedded(model, run[site][part]) for run in runs]
        logits += _logits_checks(model, pair.positions[part], rows, bounds[part])
        yield ()
    return [check for layer in layers for check in checks[layer]], logits


def _free_patches(
    model: Model,
    form: Form,
    context: Activations,
    plain: Activations,
    following: Sequence[Run],
) -> list[Run]:
    """The baseline run of each position with the free-stream updates of all layers at once."""
    dtype = context[last_site(model)].dtype
    updates = {
        layer: layer_update(layer, context, plain, block.to(dtype), form)
        for layer, block in enumerate(model.blocks)
    }
    return [
        replace(run, patch=Fixed({layer: update[i] for layer, update in updates.items()}))
        for i, run in enumerate(following)
    ]


def _logits_checks(
    model: Model, positions: Sequence[int], logits: Sequence[Tensor], bounds: Tensor
) -> list[LogitsCheck]:
    """Check each position, from the logits with context, patched, without, and controlled."""
    context, patched, plain, *controlled = logits
    found, bare = discrepancy(context, patched), discrepancy(context, plain)
    allowed = KL_GATES[context.dtype]
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
                controls={CONTROL: control} if controlled else UNSET,
                control_reasons={CONTROL: ALIKE} if controlled and control is None else UNSET,
            )
        )
    return checks
