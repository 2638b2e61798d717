"""Tables of an adapter. Controls and simpler patches stand beside its figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType

from deltaw_client import UNSET, Adapter
from schemas.adapters import Collateral, Figures, Rivals
from schemas.common import Unset
from service.cli.tables import Cell, of_model_summary, table, verdict

EXACT = "exact but for rounding, for this context, query and positions alone"
FITTED = "fitted; see the figures on held-out queries"
PEFT_TOLERANCE = 1e-5
"""Maximum relative error of the logits in PEFT. In float32, rounding stays below it."""
FIGURES = {
    "queries": "n",
    "KL, unpatched": "kl_none",
    "KL, patched": "kl_patched",
    "recovered": "recovered",
    "recovered, median": "recovered_median",
    "beyond the constant answer": "beyond_constant",
    "same first token": "top_1",
    "same first token, unpatched": "top_1_none",
    "same tokens, free run": "free_run",
}
"""The field of each row of figures."""


@dataclass(frozen=True)
class PeftErrors:
    """Relative errors of an adapter's logits in transformers and PEFT.

    Args:
        loaded: With the adapter.
        merged: With the adapter merged into the weights; None if PEFT cannot merge it.
        without: Without the adapter, the control.
    """

    loaded: float
    merged: float | None
    without: float

    @property
    def hold(self) -> bool:
        """Whether the errors are small enough to be rounding errors of float32."""
        return max(self.loaded, self.merged or 0.0) <= PEFT_TOLERANCE


def of_adapter(
    answer: Adapter, folder: Path | None, errors: PeftErrors | None = None
) -> RenderableType:
    """Lay out an adapter, its layers, its figures if it is fitted, and its errors in PEFT."""
    baseline = answer.baseline
    fit = answer.fit
    facts: dict[str, Cell] = {
        "id": answer.id,
        **({"name": answer.name} if answer.name else {}),
        "kind": answer.kind,
        "accuracy": EXACT if answer.exact else FITTED,
        "form": answer.form,
        "baseline": baseline if isinstance(baseline, str) else baseline.model_dump_json(),
        "position shift": answer.position_shift,
        "error of the written file": answer.verified,
        "bytes": answer.bytes,
    }
    if answer.positions is not UNSET:
        facts["positions"] = ", ".join(map(str, answer.positions))
    if answer.condition is not UNSET:
        facts["condition"] = answer.condition
    if answer.recipe is not UNSET:
        facts["recipe"] = answer.recipe
    if fit is not UNSET:
        facts["fitted to"] = f"{fit.k:,} queries, {fit.rows:,} rows, {fit.keep_rows:,} rows to keep"
        facts["seconds"] = fit.seconds
    if answer.peft_only:
        facts["note"] = "PEFT loads it, vLLM does not"
    written = f"written to {folder}; " if folder else ""
    return Group(
        table("adapter", (), facts.items(), written + of_model_summary(answer.model)),
        _of_layers(answer),
        *_of_figures(answer),
        *([] if errors is None else [_of_errors(answer, errors)]),
    )


def _of_errors(answer: Adapter, errors: PeftErrors) -> RenderableType:
    facts: dict[str, Cell] = {
        "loaded": errors.loaded,
        "merged": errors.merged,
        "tolerance": PEFT_TOLERANCE,
        "without the adapter": errors.without,
        "verdict": verdict("holds" if errors.hold else "fails"),
    }
    other = "transformers' run with context" if answer.exact else "deltaw's run with the update"
    return table("PEFT", (), facts.items(), f"relative errors of the logits, from {other}; float32")


def _of_layers(answer: Adapter) -> RenderableType:
    head = ["layer", "‖ΔW‖", "rank", "kept energy"]
    rows: list[list[Cell]] = [
        [each.layer, each.norm, each.rank, each.kept_energy] for each in answer.layers
    ]
    # Only a fitted adapter is truncated.
    columns = 3 if answer.fit is UNSET else 4
    return table("layers", head[:columns], [row[:columns] for row in rows])


def _of_figures(answer: Adapter) -> Iterator[RenderableType]:
    """Lay out the figures of a static adapter. Those on fitted queries stand last."""
    if answer.in_sample is UNSET:
        return
    held_out = answer.held_out or None
    rows = [
        (name, _figure(held_out, field), _figure(answer.in_sample, field))
        for name, field in FIGURES.items()
    ]
    caption = "KL from the run with context, in nats. Figures in sample are close to 1 for any fit."
    if held_out is None:
        caption += " Held-out figures need eight queries."
    yield table("figures", ["first answer token", "held out", "in sample"], rows, caption)
    if held_out is not None:
        tokens = [(each.token, each.recovered, each.top_1) for each in held_out.teacher_forced]
        caption = "each run reads the tokens of the answer with context; held-out queries"
        yield table("by answer token", ["token", "recovered", "same token"], tokens, caption)
        if answer.rivals:
            yield _of_rivals(held_out, answer.rivals)
    if answer.collateral:
        yield _of_collateral(answer.collateral)


def _figure(figures: Figures | None, field: str) -> Cell:
    value: Cell | Unset = getattr(figures, field, None)
    return None if value is UNSET else value


def _of_rivals(held_out: Figures, rivals: Rivals) -> RenderableType:
    rows: list[tuple[Cell, ...]] = [
        ("this adapter", held_out.recovered, held_out.beyond_constant),
        ("constant answer", rivals.constant, None),
        ("mean output", rivals.mean_output, rivals.mean_output_beyond_constant),
        ("random", rivals.random, None),
    ]
    head = ["patch", "recovered", "beyond the constant answer"]
    return table("rivals", head, rows, "held-out queries; random must be far lower")


def _of_collateral(collateral: Collateral) -> RenderableType:
    facts: dict[str, Cell] = {
        "mean": collateral.mean,
        "max": collateral.max,
        "mean, context itself": collateral.context_itself,
        "texts": collateral.texts,
    }
    caption = "KL from the unpatched run on unrelated texts, in nats"
    return table("collateral", (), facts.items(), caption)
