"""Model checks: every block patched in sequence, then the logits.

Each requested position has a patched run of its own in the sequential stream (Goldwaser et al.,
arXiv 2511.17864). Its block outputs and its logits must be those of the run with context. The
unpatched ones are the ordinary baseline run's. The control applies all updates of the free stream
at once, which do not compose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from schemas.common import UNSET
from schemas.equivalence_checks import Check, LogitsCheck, TopTokens
from schemas.pairs import Form
from schemas.weight_updates import LikelyToken
from service.analysis.block_checks import Procedure
from service.analysis.factors import POINTS, finite, layer_update, ratios
from service.analysis.next_tokens import last_site, likeliest, logits_cost, most_likely, unembedded
from service.analysis.pairs import Pair
from service.analysis.pieces import COMPARISON, Piece, conditions_of, pieces
from service.analysis.unread import Part, Unread, read
from service.analysis.verdicts import (
    GATES,
    KL_GATES,
    bounds_of,
    checks_of_layer,
    compared,
    verdict,
)
from service.engine import Activations, Condition, Fixed, Model, Question, Run, numbers
from service.theory import StaticUpdate, discrepancy, kl_divergence, static_updates, tolerance

CONTROL = "free_stream_patches"
ALIKE = "No layer below the first is patched, so both streams have the same update."


def model_checks(
    model: Model,
    pair: Pair,
    layers: Sequence[int],
    procedure: Procedure,
    updates: Mapping[int, StaticUpdate] | None = None,
) -> Question[tuple[list[Check], list[LogitsCheck]]]:
    """Check the output of blocks, and the logits, at each requested position.

    Args:
        model: The resident model.
        pair: The run with context and its baseline.
        layers: The reported blocks. All blocks are patched.
        procedure: How the check is made. Its scope and stream are ignored.
        updates: The update of each layer that is checked at every position; None forms the
            sequential updates of each position.
    """
    every, dtype = range(model.n_layers), procedure.dtype
    form, points = procedure.form, (*POINTS["bias"], "resid_post")
    reads = pair.reads(every, points)
    following = pair.baseline_runs(every, points, "sequential", dtype, procedure.apply, form)
    if updates is not None:
        given = Fixed(updates, procedure.apply)
        following = [replace(run, patch=given) for run in following]
    context, plain, *followed = yield [
        pair.with_context.run(pair.reads(every, (*POINTS[form], "resid_post")), dtype),
        pair.baseline.run(reads, dtype),
        *following,
    ]
    together: Sequence[Activations] = []
    if procedure.controls:
        together = yield _free_patches(model, form, context, plain, following)
    kinds = [[context], followed, [plain], *([together] if procedure.controls else [])]
    count = len(pair.positions)
    largest = torch.ones(count, dtype=torch.float64, device=model.device)
    parts: list[Part] = []
    for piece in pieces(model, every, count, len(kinds) * COMPARISON * model.d_model):
        h = piece.stacked((followed, [context]), "resid_mid")[:, 0]
        post = piece.stacked(kinds, "resid_post")[:, 0].unbind(1)
        derived = tolerance(GATES["block", dtype], h[:, 0], h[:, 1], post[0])
        rows = largest[piece.rows]
        torch.maximum(rows, derived.amax(0) / GATES["block", dtype], out=rows)
        parts.append(_block_part(piece, pair.positions, layers, procedure, post, derived))
        yield ()
    blocks = Unread(parts, lambda found: _checks_of_layers(layers, found), conditions_of(*kinds))
    bounds = bounds_of(procedure.tolerance, GATES["model", dtype] * largest)
    site = last_site(model)
    parts = []
    for piece in pieces(model, [site.layer], count, len(kinds) * logits_cost(model)):
        logits, condition = unembedded(model, piece.stacked(kinds, site.point)[0, 0])
        positions = pair.positions[piece.rows]
        parts.append(_logits_part(model, positions, logits, bounds[piece.rows], condition))
        yield ()
    last = Unread(parts, lambda found: list[LogitsCheck](chain.from_iterable(found)))
    checks, logits_checks = yield from read(blocks, last)
    return checks, logits_checks


def _block_part(
    piece: Piece,
    positions: Sequence[int],
    layers: Sequence[int],
    procedure: Procedure,
    post: Sequence[Tensor],
    derived: Tensor,
) -> Part:
    """Check the reported layers of a piece.

    Args:
        piece: Some of all layers.
        positions: All positions.
        layers: The reported layers.
        procedure: How the check is made.
        post: resid_post of the run with context, the patched one, the plain one, and the one with
            all updates of the free stream if there are controls; (layers, rows, d_model) each.
        derived: The derived tolerances, (layers, rows).
    """
    context, patched, plain, *controlled = post
    bounds = bounds_of(procedure.tolerance, derived)
    tensors = [compared(context, patched, plain, bounds)]
    tensors += [discrepancy(context, control).relative_error for control in controlled]
    rows = positions[piece.rows]

    def finish(host: Sequence[Tensor]) -> dict[int, list[Check]]:
        figures, *errors = map(numbers, host)
        found = {}
        for i, layer in enumerate(piece.layers):
            if layer not in layers:
                continue
            controls: dict[str, list[float | None]] = {}
            if errors and layer == 0:
                controls = {CONTROL: [None] * len(rows)}
            elif errors:
                controls = {CONTROL: ratios(errors[0][i])}
            reasons = {CONTROL: ALIKE} if errors and layer == 0 else {}
            found[layer] = checks_of_layer(
                layer, rows, figures[i], context.dtype, controls, reasons
            )
        return found

    return Part(tensors, finish)


def _checks_of_layers(
    layers: Sequence[int], found: Sequence[Mapping[int, Sequence[Check]]]
) -> list[Check]:
    """The checks of the reported layers in their order, from those of each piece."""
    return [check for layer in layers for of_piece in found for check in of_piece.get(layer, ())]


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
        layer: static_updates(layer_update(layer, context, plain, block.to(dtype), form))
        for layer, block in enumerate(model.blocks)
    }
    return [
        replace(run, patch=Fixed({layer: update[i] for layer, update in updates.items()}))
        for i, run in enumerate(following)
    ]


def _logits_part(
    model: Model,
    positions: Sequence[int],
    logits: Tensor,
    bounds: Tensor,
    condition: Condition,
) -> Part:
    """Check positions, from the logits with context, patched, without, and controlled."""
    context, patched, plain, *controlled = logits.unbind()
    found, bare = discrepancy(context, patched), discrepancy(context, plain)
    best = logits[:3].argmax(-1)
    columns = [
        found.relative_error,
        found.max_abs_error,
        bounds,
        bare.relative_error,
        kl_divergence(context, patched),
        kl_divergence(context, plain),
        best[0] == best[1],
    ]
    top = most_likely(logits[:3])
    shown = controlled if model.n_layers > 1 else []
    controls = [discrepancy(context, other).relative_error for other in shown]

    def finish(host: Sequence[Tensor]) -> list[LogitsCheck]:
        figures = [numbers(values) for values in host]
        ids, probabilities = figures[len(columns) : len(columns) + 2]
        tops = [likeliest(model, *of_run) for of_run in zip(ids, probabilities, strict=True)]
        errors = figures[-1] if controls else [None] * len(positions)
        rows = zip(
            positions, *figures[: len(columns)], zip(*tops, strict=True), errors, strict=True
        )
        return [_logits_check(context.dtype, bool(controlled), *row) for row in rows]

    return Part([*columns, *top, *controls], finish, [condition])


def _logits_check(
    dtype: torch.dtype,
    has_controls: bool,
    position: int,
    error: float,
    largest: float,
    bound: float,
    without: float,
    kl: float,
    kl_without: float,
    same: bool,
    top: Sequence[Sequence[LikelyToken]],
    control: float | None,
) -> LogitsCheck:
    """The check of one position, from its figures in the order of `_logits_part`."""
    allowed = KL_GATES[dtype]
    told = verdict(error, without, bound) if kl <= allowed and same else "fails"
    control = None if control is None else finite(control)
    return LogitsCheck(
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
        controls={CONTROL: control} if has_controls else UNSET,
        control_reasons={CONTROL: ALIKE} if has_controls and control is None else UNSET,
    )
