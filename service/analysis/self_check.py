"""The self-check: the equivalence check at start, without which the service returns no numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import torch

from schemas.model import SelfCheck
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.pairs import resolve_pair
from service.engine import Model, Question
from service.errors import ServiceError
from service.theory import NonFinite

CONTEXT_TOKENS = 16
STRIDE = 7919
"""Step between the ids of the fixed prompt, so that the self-check needs no tokenizer."""


def self_check(model: Model) -> Question[SelfCheck]:
    """Check the block of every layer with the default baseline and stream `free`, in float32."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    length = min(CONTEXT_TOKENS, model.n_positions - 1 - len(model.tokenizer.anchor))
    *context, query = [STRIDE * (i + 1) % model.vocab_size for i in range(length + 1)]
    try:
        pair = resolve_pair(model, context, [query], None, "last")
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
    """The largest or smallest error, or None if one is not finite."""
    known = [error for error in errors if error is not None]
    return of(known) if len(known) == len(errors) else None
