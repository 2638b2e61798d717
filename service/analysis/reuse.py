"""Reuse: the error of an update on other queries.

An update is exact for the query that it was formed for. For other queries its error is reported
beside the error without any patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from schemas.weight_updates import Reuse
from service.analysis.factors import finite
from service.analysis.pairs import Pair
from service.analysis.pieces import (
    COMPARISON,
    Piece,
    conditions_of,
    exists,
    first_weights,
    pieces,
    update_cost,
)
from service.analysis.unread import Part, Unread, in_pieces
from service.engine import Activations, Model, Question, numbers
from service.theory import below_noise, discrepancy, update_on_base


def reuses(
    model: Model,
    pairs: Sequence[Pair],
    layers: Sequence[int],
    probes: Sequence[Sequence[Pair]],
) -> Question[Unread[Sequence[Sequence[Sequence[Reuse]]]]]:
    """Apply each layer's update at each requested position of each pair to its probes.

    Only in the free stream: an update of the sequential stream belongs to the stream that the
    patched layers below produce for its own query.
    """
    runs = []
    for pair, queries in zip(pairs, probes, strict=True):
        reads = pair.reads(layers, ("mlp_in",))
        runs += [pair.with_context.run(reads), pair.baseline.run(reads)]
        for probe in queries:
            reads = probe.reads(layers, ("mlp_in", *model.blocks[0].pre_points))
            runs += [probe.with_context.run(reads), probe.baseline.run(reads)]
    received = yield runs
    rest = iter(received)
    each: list[Unread[list[list[Sequence[Reuse]]]]] = []
    for pair, queries in zip(pairs, probes, strict=True):
        context, baseline, *probed = [next(rest) for _ in range(2 + 2 * len(queries))]
        count = len(pair.positions)
        if not queries:
            each.append(_no_reuse(len(layers) * count))
            continue
        form = partial(_part, model, context, baseline, probed)
        cost = update_cost(model) + COMPARISON * len(queries) * model.blocks[0].w_in.width
        cut = pieces(model, layers, count, cost)
        each.append((yield from in_pieces(cut, form, [count], received)))

    def whole(found: list[Any]) -> list[list[Sequence[Reuse]]]:
        finished = iter(found)
        return [one.whole([next(finished) for _ in one.parts])[0] for one in each]

    return Unread([part for one in each for part in one.parts], whole, conditions_of(received))


def _no_reuse(entries: int) -> Unread[list[list[Sequence[Reuse]]]]:
    """The result of a pair without probes."""
    return Unread((), lambda _: [[()] * entries])


def _part(
    model: Model,
    context: Activations,
    baseline: Activations,
    probed: Sequence[Activations],
    piece: Piece,
) -> Part:
    """Apply the updates of a piece, (layers, rows), to every probe, (layers, rows, probes)."""
    first = first_weights(model, piece)
    probes = Piece(piece.at, piece.layers, slice(0, len(probed) // 2), len(probed) // 2)
    n_context, n = piece.stacked(([context], [baseline]), "mlp_in")[:, 0].unbind(1)
    kinds = (probed[::2], probed[1::2])
    probe_context, probe = probes.stacked(kinds, "mlp_in")[:, 0].unbind(1)
    points = model.blocks[0].pre_points
    expected, unpatched = (
        probes.stacked(kinds, *points).movedim(1, -2).flatten(-2).unsqueeze(2).unbind(1)
    )
    weight = update_on_base(n, n, n_context, first)
    its_own = update_on_base(probe, probe, probe_context, first)
    plain = torch.stack(
        [
            model.blocks[layer].w_in(rows)
            for layer, rows in zip(piece.layers, probe.unbind(), strict=True)
        ]
    )
    shift = weight.to(probe.dtype)[:, :, None].apply(probe.unsqueeze(1))
    patched = plain.unsqueeze(1) + shift
    noise = below_noise(probe, probe_context, probe.dtype)
    norms = torch.cat([weight.norm, its_own.norm], 1)
    tensors = [
        weight[:, :, None].cosine(its_own[:, None]),
        discrepancy(expected, patched).relative_error,
        discrepancy(expected, unpatched).relative_error,
        noise,
    ]

    def finish(host: Sequence[Tensor]) -> list[list[list[Reuse]]]:
        cosines, errors, bare, below = map(numbers, host)
        return [
            [
                [
                    Reuse(
                        query,
                        None if below[layer][query] else finite(cosine),
                        below[layer][query],
                        finite(error),
                        finite(bare[layer][0][query]),
                    )
                    for query, (cosine, error) in enumerate(zip(*of_row, strict=True))
                ]
                for of_row in zip(cosines[layer], errors[layer], strict=True)
            ]
            for layer in range(len(piece.layers))
        ]

    return Part(tensors, finish, [exists(norms)])
