"""Equivalence checks of every scope in float32 and float64, with their controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from docs.conformance.subjects import Subject
from schemas.common import UNSET
from schemas.equivalence_checks import Check, LogitsCheck, Verdict
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.model_checks import model_checks
from service.analysis.pairs import resolve_pair
from service.engine import Model, drive

Precision = Literal["float32", "float64"]
PRECISIONS: Mapping[Precision, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
}
SCOPES = ("projection", "block", "block, by weights", "model, blocks", "model, logits")


@dataclass(frozen=True)
class Checked:
    """The checks of one scope in one precision.

    Args:
        verdicts: The verdict of each check.
        error: Relative error of the check with the largest share of its tolerance.
        tolerance: The tolerance of that check.
        control: Least relative error of any control of a check that is not vacuous.
        clearance: Least ratio of a control's error to the tolerance of its check.
    """

    verdicts: tuple[Verdict, ...]
    error: float
    tolerance: float
    control: float
    clearance: float


def check(subject: Subject, model: Model) -> dict[tuple[str, Precision], Checked]:
    """Check every layer and every position of the query, in each scope and precision.

    Args:
        subject: The checkpoint. The baseline is the model's default.
        model: The resident model.
    """
    return {
        (scope, precision): together([summary(found)])
        for precision in PRECISIONS
        for scope, found in _checks(subject, model, PRECISIONS[precision])
    }


def _checks(
    subject: Subject, model: Model, dtype: torch.dtype
) -> Iterator[tuple[str, Sequence[Check | LogitsCheck]]]:
    """The checks of each scope."""
    layers, length = range(model.n_layers), subject.query_length
    context, query = subject.ids[:-length], subject.ids[-length:]
    with torch.inference_mode():
        pair = resolve_pair(model, context, query, None, "all")
        procedures = (
            Procedure("projection", dtype),
            Procedure("block", dtype),
            Procedure("block", dtype, form="weights"),
        )
        for scope, procedure in zip(SCOPES, procedures, strict=False):
            yield scope, drive(model, block_checks(model, pair, layers, procedure))
        whole, logits = drive(model, model_checks(model, pair, layers, Procedure(dtype=dtype)))
        yield SCOPES[3], whole
        yield SCOPES[4], logits


def summary(checks: Sequence[Check | LogitsCheck]) -> Checked:
    """Sum up the checks of one scope."""
    worst = max(checks, key=lambda one: _or_infinite(one.relative_error) / one.tolerance)
    controls = [
        (error, error / one.tolerance)
        for one in checks
        if one.verdict != "vacuous" and one.controls is not UNSET
        for error in one.controls.values()
        if error is not None
    ]
    nothing = float("inf")
    return Checked(
        verdicts=tuple(one.verdict for one in checks),
        error=_or_infinite(worst.relative_error),
        tolerance=worst.tolerance,
        control=min((error for error, _ in controls), default=nothing),
        clearance=min((ratio for _, ratio in controls), default=nothing),
    )


def together(found: Sequence[Checked]) -> Checked:
    """Sum up one scope of several checkpoints."""
    worst = max(found, key=lambda one: one.error / one.tolerance)
    return Checked(
        verdicts=tuple(verdict for one in found for verdict in one.verdicts),
        error=worst.error,
        tolerance=worst.tolerance,
        control=min(one.control for one in found),
        clearance=min(one.clearance for one in found),
    )


def _or_infinite(error: float | None) -> float:
    return float("inf") if error is None else error
