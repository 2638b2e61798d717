"""The update of baseline `alone`, split into content and position on a common base.

With n_a of the query alone, n_m of the query at its position without context and n_C with it,

    ΔW = n_aᵀ((n_C − n_a) W)/‖n_a‖² = n_aᵀ((n_C − n_m) W)/‖n_a‖² + n_aᵀ((n_m − n_a) W)/‖n_a‖²,

the content first and the position (with the first token's artefact) second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schemas.weight_updates import Part as SplitPart
from schemas.weight_updates import Split
from service.analysis.pairs import Pair
from service.analysis.pieces import Piece, exists, first_weights, pieces, update_cost
from service.analysis.unread import Part, Unread, in_pieces
from service.engine import Activations, Model, Question, numbers, vectors
from service.theory import update_on_base


def splits(
    model: Model, pairs: Sequence[Pair], layers: Sequence[int]
) -> Question[Unread[Sequence[Sequence[Split[Tensor]]]]]:
    """Split each layer's update at each requested position of each pair."""
    runs = []
    for pair in pairs:
        reads = pair.reads(layers, ("mlp_in",))
        prompts = (pair.with_context, pair.matched, pair.baseline)
        runs += [prompt.run(reads) for prompt in prompts]
    received = yield runs
    kinds = [received[kind::3] for kind in range(3)]
    lengths = [len(pair.positions) for pair in pairs]
    cut = pieces(model, layers, sum(lengths), 2 * update_cost(model))
    return (yield from in_pieces(cut, lambda piece: _part(model, piece, kinds), lengths, received))


def _part(model: Model, piece: Piece, kinds: Sequence[Sequence[Activations]]) -> Part:
    """The content and the position of a piece, each (layers, 2, rows, …)."""
    n = piece.stacked(kinds, "mlp_in")[:, 0]
    context, matched, alone = torch.split(n, 1, 1)
    update = update_on_base(
        alone,
        torch.cat([matched, alone], 1),
        torch.cat([context, matched], 1),
        first_weights(model, piece),
    )
    norms = update.norm

    def finish(host: Sequence[Tensor]) -> list[list[Split[Tensor]]]:
        sizes, inputs = numbers(host[0]), iter(vectors(host[1]))
        columns = [weight.columns for weight in model.first_weights(piece.layers[0])]
        outputs = [iter(vectors(host[2][..., one])) for one in columns]
        found = []
        for of_layer in sizes:
            shared = [next(inputs) for _ in of_layer[0]]
            content, position = (
                [
                    SplitPart(size, given, [next(rows) for rows in outputs])
                    for size, given in zip(of_part, shared, strict=True)
                ]
                for of_part in of_layer
            )
            found.append([Split(*of_row) for of_row in zip(content, position, strict=True)])
        return found

    tensors = [norms, update.input.float(), update.output.float()]
    return Part(tensors, finish, [exists(norms)])
