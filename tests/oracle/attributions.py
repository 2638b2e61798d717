"""The contribution of each span of the context, by separate runs.

The formulas are those of docs/theory.md, "Which part of the context".

On the base n_0, the baseline's mlp_in (matched or anchored), with n_s the reading of span s alone
at its own positions and n_C that of the whole context:

    ΔW_s = n_0ᵀ((n_s - n_0) W1) / |n_0|²      ΔW(C) = n_0ᵀ((n_C - n_0) W1) / |n_0|²

Only ``leave_one_out`` has another base: the update from the run without s to the full run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .questions import Question, Span
from .updates import Update, between, cancellation, cosine, norm, on_base, ratio


@dataclass(frozen=True)
class Share:
    """The contribution of one span."""

    span: Span
    leave_one_out: float  # norm of the update from the baseline Without((span,))
    only_this_span: float  # |ΔW_s|
    cosine_to_total: float  # cos(ΔW_s, ΔW(C))
    share: float  # <ΔW_s, ΔW(C)> / |ΔW(C)|²
    leave_one_out_cancellation: float  # for `leave_one_out` (docs/theory.md, "Numbers")
    cancellation: float  # (|n_s| + |n_0|) / |n_s - n_0|, for the other three figures


@dataclass(frozen=True)
class Attribution:
    """The contributions of all spans at one layer and query position."""

    norm: float  # |ΔW(C)|
    order_effect: float  # |ΔW(C) - ΔW(C with its spans in reverse)| / |ΔW(C)|
    spans: tuple[Share, ...]


def attribution(
    question: Question, layer: int, position: int = -1, *, spans: Sequence[Span]
) -> Attribution:
    """The contribution of every span to the update of one layer and position."""
    if question.baseline not in ("matched", "anchored"):
        raise ValueError("an attribution's baseline is matched or anchored")
    point = (layer, "mlp_in")
    weight = question.model.blocks[layer].w_in  # (d_model, d_mlp)
    first = question.base[point][position]  # n_0
    whole = question.full[point][position]  # n_C
    total = on_base(first, first, whole, weight)  # ΔW(C)
    shares = []
    for span in spans:
        kept = {*question.always_kept, *range(*span)}
        only = question.trace(question.keeping(kept))[point][position]  # n_s
        part = on_base(first, first, only, weight)  # ΔW_s
        left_out = without(question, layer, position, span)
        shares.append(
            Share(
                span=span,
                leave_one_out=left_out.norm,
                only_this_span=norm(part),
                cosine_to_total=cosine(part, total),
                share=ratio(float((part * total).sum()), norm(total) ** 2),
                leave_one_out_cancellation=left_out.cancellation,
                cancellation=cancellation(only, first),
            )
        )
    reverse = question.trace(question.reordered(reverse_order(question, spans)))[point][position]
    turned = on_base(first, first, reverse, weight)
    return Attribution(norm(total), ratio(norm(total - turned), norm(total)), tuple(shares))


def without(question: Question, layer: int, position: int, span: Span) -> Update:
    """The update from the run without ``span`` (the anchor stays) to the full run."""
    lost = set(range(*span)) - set(question.always_kept)
    kept = (i for i in range(len(question.context)) if i not in lost)
    left = question.trace(question.keeping(kept))
    return between(question, layer, position, question.full, left)


def reverse_order(question: Question, spans: Sequence[Span]) -> list[int]:
    """The context's indices with the spans reversed; the anchor and uncovered tokens stay.

    Each span keeps its inner order; a gap between two spans keeps its rank among the pieces.
    """
    fixed = set(question.always_kept)
    pieces = [[i for i in range(*span) if i not in fixed] for span in spans]
    backward = iter(reversed(pieces))
    order: list[int] = []
    last = 0
    for begin, end in spans:
        order += [i for i in range(last, end) if i < begin or i in fixed]
        order += next(backward)
        last = end
    return order + list(range(last, len(question.context)))
