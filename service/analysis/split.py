"""The update of baseline `alone`, split into content and position on a common base.

With n_a of the query alone, n_m of the query at its position without context and n_C with it,

    ΔW = n_aᵀ((n_C − n_a) W)/‖n_a‖² = n_aᵀ((n_C − n_m) W)/‖n_a‖² + n_aᵀ((n_m − n_a) W)/‖n_a‖²,

the content first and the position (with the first token's artefact) second.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from schemas.common import UNSET, Unset
from schemas.weight_updates import Part, Split
from service.analysis.factors import on_wire
from service.analysis.pairs import Pair
from service.engine import FirstWeight, Model, Question, Site
from service.theory import RankOne, update_on_base


def splits(
    model: Model, pair: Pair, layers: Sequence[int], asked: bool
) -> Question[Sequence[Split[Tensor] | Unset]]:
    """Split each layer's update at each requested position, if that is asked for."""
    if not asked:
        return [UNSET] * (len(layers) * len(pair.positions))
    reads = pair.reads(layers, ("mlp_in",))
    prompts = (pair.with_context, pair.matched, pair.baseline)
    context, matched, alone = yield [prompt.run(reads) for prompt in prompts]
    found: list[Split[Tensor] | Unset] = []
    for layer in layers:
        n, w_in = Site(layer, "mlp_in"), model.blocks[layer].w_in
        content = update_on_base(alone[n], matched[n], context[n], w_in)
        position = update_on_base(alone[n], alone[n], matched[n], w_in)
        first = model.first_weights(layer)
        found += [
            Split(_part(content[i], first), _part(position[i], first))
            for i in range(len(pair.positions))
        ]
    return found


def _part(update: RankOne, first: Sequence[FirstWeight]) -> Part[Tensor]:
    """One part in the form of an answer."""
    wire = on_wire(update)
    return Part(float(update.norm), wire.input, [wire.output[one.columns] for one in first])
