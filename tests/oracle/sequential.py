"""The sequential stream: each layer's baseline is the output of the patched layers below it.

See docs/theory.md, "Streams" (Goldwaser et al., arXiv 2511.17864, Algorithm 1). To find layer l's
update, this module runs the baseline from the start with the patches of the layers below l, and
reads n and h of layer l. The patches act on every row of the run. Each target position has its own
sequence of runs.
"""

from dataclasses import dataclass
from functools import lru_cache

from .checkpoint import Array
from .decoder import Patch, Trace
from .questions import Question
from .updates import Form, Update, between, update


@dataclass(frozen=True, eq=False)
class Sequential:
    """The sequential updates for one target position, and the runs compared with them."""

    position: int  # the target, a query position counted from the start
    form: Form
    updates: tuple[Update, ...]  # one a layer; n and h are those of the patched stream
    patched: Trace  # all updates applied, the query's rows
    free_stream: Trace  # all free-stream updates applied at once, the query's rows
    logits_with_context: Array  # (vocab), at the target
    logits_patched: Array  # (vocab): equal to those with the context
    logits_unpatched: Array  # (vocab), of the ordinary baseline run
    logits_free_stream_patches: Array  # (vocab): the control, which does not compose

    def beneath(self, layer: int) -> dict[int, Patch]:
        """The patches of the layers below ``layer``."""
        return {below: self.updates[below].patch_in(self.form) for below in range(layer)}


@lru_cache(maxsize=32)
def sequential(question: Question, position: int = -1, form: Form = "bias") -> Sequential:
    """Patch layer after layer for one target position, with a run for each layer."""
    layers = range(question.model.n_layers)
    updates: list[Update] = []
    patches: dict[int, Patch] = {}
    for layer in layers:
        state = question.patched(patches, layer + 1)  # patched below, ordinary here
        updates.append(between(question, layer, position, question.full, state))
        patches[layer] = updates[-1].patch_in(form)
    patched = question.patched(patches)
    free = {layer: update(question, layer, position).patch_in(form) for layer in layers}
    free_stream = question.patched(free)
    return Sequential(
        position=question.row(position),
        form=form,
        updates=tuple(updates),
        patched=patched,
        free_stream=free_stream,
        logits_with_context=question.full.logits[position],
        logits_patched=patched.logits[position],
        logits_unpatched=question.base.logits[position],
        logits_free_stream_patches=free_stream.logits[position],
    )
