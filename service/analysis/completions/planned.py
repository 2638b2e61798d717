"""The plan of a completion: its inputs resolved, its work, and the size of its answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping

from torch import Tensor

from schemas.common import UNSET
from schemas.completions import (
    AdapterPatch,
    Capture,
    Completion,
    CompletionRequest,
    Recompute,
    RecomputedPatch,
)
from service.analysis.activations import hook_points
from service.analysis.adapters.made import LoadedAdapter
from service.analysis.completions.answers import Answering
from service.analysis.completions.generation import Emit, Generation, Sampling, generate
from service.analysis.completions.layouts import lay_out, moved
from service.analysis.inputs import refuse, resolve_layers
from service.engine import AnswerSize, Model, Plan, Site, plan
from service.errors import Invalid
from service.theory import StaticUpdate

MAX_SEED = 2**53
"""A seed that is chosen here is below this, so that every JSON reader holds it exactly."""
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "presence_penalty": (None, 0.0),
    "frequency_penalty": (None, 0.0),
    "logit_bias": (None, {}),
    "suffix": (None,),
}
"""Fields of OpenAI's API with the values that change nothing."""
EVENT_BYTES = 1024
"""Upper estimate of an event's bytes, or of a token's in an answer, without texts and tensors."""
CAPTURED_BYTES = 192
"""Upper estimate of the bytes of one captured hook point, without its values."""


def plan_completion(
    model: Model,
    body: CompletionRequest,
    adapter: LoadedAdapter | None = None,
    emit: Emit | None = None,
) -> Plan[Completion[Tensor]]:
    """Plan a completion.

    Args:
        model: The resident model.
        body: The request.
        adapter: The adapter that it names, as its model or in its patch.
        emit: Receives the event of each token, on the compute thread. None: there is no stream.

    Raises:
        Refused: An input does not fit the model, or the combination is not defined.
    """
    _refuse_unsupported(body)
    patch = body.patch
    if adapter is not None and patch is None:
        patch = AdapterPatch(adapter=adapter.id)
    refuse(
        body.agreement and (patch is None or patch.context is None),
        "`agreement` compares with the run with context. Give `patch` with a `context`.",
        "agreement",
    )
    layout = lay_out(model, body, patch, adapter)
    sites = () if body.capture is None else _sites(model, body.capture)
    wanted = Generation(
        prompt=layout.generating,
        context=layout.context,
        patch=_patch(model, patch, adapter),
        max_tokens=body.max_tokens,
        sampling=Sampling(body.temperature, body.top_p, _seed(body)),
        agreement=body.agreement,
        logprobs=body.logprobs,
        scores_prompt=body.echo and body.logprobs is not None,
        sites=sites,
        reduce="none" if body.capture is None else body.capture.reduce,
    )
    refuse(
        wanted.scores_prompt and isinstance(patch, RecomputedPatch),
        "A recomputed patch is exact for the last token, so that the prompt's tokens have no "
        "log-probabilities under it. Leave out `echo` or `logprobs`.",
        "echo",
    )
    empty = Completion[Tensor](
        id=f"cmpl-{secrets.token_hex(12)}",
        object="text_completion",
        created=int(time.time()),
        model=model.id if adapter is None else adapter.id,
        choices=[],
        resident_model=model.summary,
        seed=wanted.sampling.seed,
        one_set_of_weights=UNSET if patch is None else wanted.kind != "new",
    )
    options = body.stream_options
    answer = Answering(
        model=model,
        empty=empty,
        prompt=layout.generating,
        stops=[body.stop] if isinstance(body.stop, str) else body.stop or (),
        echo=body.echo,
        text=body.prompt if isinstance(body.prompt, str) else None,
        logprobs=body.logprobs,
        has_agreement=body.agreement,
        sites=sites,
        shows_usage=emit is not None and options is not None and options.include_usage,
    )
    question = generate(model, wanted, answer, emit)
    later = wanted.max_tokens - 1
    return plan(model, question, _size(model, wanted, body), _later_rows(wanted), later)


def _refuse_unsupported(body: CompletionRequest) -> None:
    for name, same in UNSUPPORTED.items():
        refuse(getattr(body, name) not in same, f"`{name}` is not supported. Leave it out.", name)
    refuse(
        body.stream_options is not None and not body.stream,
        "`stream_options` needs `stream`.",
        "stream_options",
    )


def _seed(body: CompletionRequest) -> int:
    return secrets.randbelow(MAX_SEED) if body.seed is None else body.seed


def _sites(model: Model, capture: Capture) -> tuple[Site, ...]:
    paths = {name: ("capture", name) for name in ("layers", "hook_points")}
    with moved(paths):
        points = hook_points(model, capture.hook_points)
        layers = resolve_layers(model, capture.layers)
    if not points:
        raise Invalid("`hook_points` is empty. Name at least one.", at=paths["hook_points"])
    return tuple(Site(layer, point) for layer in layers for point in points)


def _patch(
    model: Model, patch: RecomputedPatch | AdapterPatch | None, adapter: LoadedAdapter | None
) -> Recompute | Mapping[int, StaticUpdate] | None:
    """How the patch is recomputed, or the updates of the adapter times its scale."""
    if isinstance(patch, RecomputedPatch):
        return patch.recompute
    if patch is None or adapter is None:
        return None
    if patch.scale == 1.0:
        # Requests that share the adapter's own objects share its products too.
        return adapter.updates
    norms = {layer: model.blocks[layer].post_mlp for layer in adapter.updates}
    return {
        layer: update.scaled(patch.scale, None if (norm := norms[layer]) is None else norm.gain)
        for layer, update in adapter.updates.items()
    }


def _later_rows(wanted: Generation) -> int:
    """Rows of all runs but the first ones."""
    more = wanted.max_tokens - 1
    rows = more
    if wanted.kind == "all":
        prompt = len(wanted.prompt.ids)
        rows = sum(range(prompt + 1, prompt + 1 + more))
    return rows + (more if wanted.agreement or isinstance(wanted.patch, str) else 0)


def _size(model: Model, wanted: Generation, body: CompletionRequest) -> AnswerSize:
    prompt = wanted.prompt.query_length if body.echo else 0
    tokens = wanted.max_tokens + prompt
    if body.logprobs is not None:
        scored = wanted.max_tokens + (prompt if wanted.scores_prompt else 0)
        tokens += scored * (2 + body.logprobs)
    layers = len({site.layer for site in wanted.sites})
    rows = wanted.max_tokens
    # A norm is a float64 number.
    width = {"none": sum(model.width(site.point) for site in wanted.sites)}
    numbers = width.get(wanted.reduce, 2 * len(wanted.sites))
    captured = len(wanted.sites) * (rows if body.stream else 1)
    return AnswerSize(
        entries=4 + rows + captured * CAPTURED_BYTES // EVENT_BYTES + layers,
        tokens=tokens,
        numbers=numbers * rows,
        entry_bytes=EVENT_BYTES,
    )
