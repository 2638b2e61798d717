"""The self-check: the equivalence check that decides at start whether numbers may be given out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from service.analysis.block_checks import Procedure, block_checks
from service.analysis.pairs import resolve_pair
from service.engine import Model, Question
from service.errors import ServiceError
from service.theory import NonFinite, Verdict

CONTEXT_TOKENS = 16
STRIDE = 7919
"""Ids are drawn by this stride through the vocabulary, so that no tokenizer is needed."""


@dataclass(frozen=True)
class SelfCheck:
    """The block check of every layer on a fixed prompt, in float32.

    Args:
        when: UTC, ISO 8601.
        verdict: `holds`, `fails`, or `vacuous` where no layer could tell.
        layers: How many were checked.
        worst_relative_error: Of the patched runs; None where a value was not finite.
        least_unpatched_relative_error: Of the unpatched ones.
        reason: Why it fails, where that is known.
    """

    when: str
    verdict: Verdict
    layers: int
    worst_relative_error: float | None
    least_unpatched_relative_error: float | None
    reason: str | None = None


def self_check(model: Model) -> Question[SelfCheck]:
    """Run the block check of all layers, matched baseline, free stream."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    length = min(CONTEXT_TOKENS, model.n_positions - 1)
    *context, query = [STRIDE * (i + 1) % model.vocab_size for i in range(length + 1)]
    try:
        pair = resolve_pair(model, context, [query], "matched", "last")
        procedure = Procedure("block", torch.float32, controls=False)
        checks = yield from block_checks(model, pair, range(model.n_layers), procedure)
    except (ServiceError, NonFinite) as error:
        return SelfCheck(when, "fails", model.n_layers, None, None, str(error))
    verdicts = {check.verdict for check in checks}
    return SelfCheck(
        when=when,
        verdict="fails" if "fails" in verdicts else "holds" if "holds" in verdicts else "vacuous",
        layers=len(checks),
        worst_relative_error=_extreme(max, [check.relative_error for check in checks]),
        least_unpatched_relative_error=_extreme(
            min, [check.unpatched_relative_error for check in checks]
        ),
    )


def _extreme(of: Callable[[list[float]], float], errors: Sequence[float | None]) -> float | None:
    """The largest or least error; None where one does not exist."""
    known = [error for error in errors if error is not None]
    return of(known) if len(known) == len(errors) else None
