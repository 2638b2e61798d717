"""The rows with which the runs of a completion begin, and their positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from schemas.completions import AdapterPatch, CompletionRequest, RecomputedPatch
from schemas.pairs import Baseline
from service.analysis.adapters.made import LoadedAdapter
from service.analysis.inputs import refuse, resolve_prompt
from service.analysis.pairs import Prompt, resolve_pair
from service.engine import Model
from service.errors import NotSupported, Path, PromptTooLong, Refused

MAX_RECOMPUTED = 64
"""Maximum tokens of `recompute: "all"`, which runs the whole text again for each of them."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The beginnings of the runs.

    Args:
        generating: That of the run whose tokens are chosen.
        context: That of the run with context; None: there is none.
    """

    generating: Prompt
    context: Prompt | None


def lay_out(
    model: Model,
    body: CompletionRequest,
    patch: RecomputedPatch | AdapterPatch | None,
    adapter: LoadedAdapter | None,
) -> Layout:
    """Lay out the prompt, with the context of its patch if there is one.

    Under a patch with a context, the prompt lies where the baseline has the query. Under an adapter
    without its context, the prompt begins at position 0, behind the anchor if the adapter was made
    for that.

    Raises:
        Refused: The prompt or the context does not fit the model, or `max_tokens` does not.
    """
    context = None if patch is None else patch.context
    if patch is None or context is None:
        layout = Layout(_alone(model, body, adapter), None)
    else:
        baseline = _baseline(patch, adapter)
        sent = ("baseline",) if isinstance(patch, RecomputedPatch) else ("context",)
        with moved({"context": ("patch", "context"), "baseline": ("patch", *sent)}):
            pair = resolve_pair(model, context, body.prompt, baseline, "last", query_at=("prompt",))
        layout = Layout(pair.baseline, pair.with_context)
    _check_length(model, body, layout)
    return layout


def _alone(model: Model, body: CompletionRequest, adapter: LoadedAdapter | None) -> Prompt:
    """The prompt from position 0, behind the anchor for an adapter that was made for it."""
    ids = resolve_prompt(model, body.prompt, ("prompt",))
    head: tuple[int, ...] = ()
    if adapter is not None:
        refuse(
            not isinstance(adapter.record.baseline, str),
            "The baseline of this adapter needs its context. Give `patch.context`.",
            "model" if body.patch is None else "patch",
        )
        anchor = model.tokenizer.anchor
        if adapter.record.baseline == "anchored" and ids[: len(anchor)] != anchor:
            head = anchor
    return Prompt(head + ids, tuple(range(len(head + ids))), len(ids))


def _baseline(
    patch: RecomputedPatch | AdapterPatch, adapter: LoadedAdapter | None
) -> Baseline | None:
    if isinstance(patch, RecomputedPatch):
        return patch.baseline
    return None if adapter is None else adapter.record.baseline


def _check_length(model: Model, body: CompletionRequest, layout: Layout) -> None:
    """Refuse more tokens than the runs have positions for, or than a recomputed patch may have.

    Raises:
        PromptTooLong, NotSupported: There are more.
    """
    prompts = [one for one in (layout.generating, layout.context) if one is not None]
    longest = max(int(one.positions[-1]) + 1 for one in prompts)
    if longest + body.max_tokens > model.n_positions:
        raise PromptTooLong(
            f"The prompt takes {longest:,} positions and `max_tokens` is {body.max_tokens:,}; the "
            f"model has {model.n_positions:,}. Shorten the prompt, or lower `max_tokens`.",
            at=("max_tokens",) if "max_tokens" in body.model_fields_set else ("prompt",),
            limit=model.n_positions,
            actual=longest + body.max_tokens,
        )
    every = isinstance(body.patch, RecomputedPatch) and body.patch.recompute == "all"
    if every and body.max_tokens > MAX_RECOMPUTED:
        raise NotSupported(
            f'`recompute: "all"` runs the whole text again for each token, and so has a limit of '
            f"{MAX_RECOMPUTED} tokens. Lower `max_tokens`, or choose `new`.",
            at=("max_tokens",),
            limit=MAX_RECOMPUTED,
            actual=body.max_tokens,
        )


@contextmanager
def moved(paths: Mapping[str, Path]) -> Iterator[None]:
    """Let an error point at this request: paths that begin with a key begin with its value."""
    try:
        yield
    except Refused as error:
        if error.at and str(error.at[0]) in paths:
            error.at = (*paths[str(error.at[0])], *error.at[1:])
        raise
