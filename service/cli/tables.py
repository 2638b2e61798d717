"""Answers as tables. A caption below each says what its numbers are relative to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deltaw_client import Activations, EquivalenceChecks, LoadedModel, Trajectories, WeightUpdates
from schemas.common import UNSET, ModelSummary
from schemas.equivalence_checks import Check, LogitsCheck
from schemas.pairs import PairAnswer
from schemas.weight_updates import NextTokens

Cell = float | str | Text | None

STYLES = {"holds": "bold green", "fails": "bold red", "vacuous": "bold yellow"}
LIKELIEST = 5
"""Number of next tokens shown; the answer has ten."""


def shown(cell: Cell) -> Text:
    """Format a number to three digits, an integer in full; None is a dash."""
    if isinstance(cell, float):
        return Text(f"{cell:.3g}")
    if isinstance(cell, int):
        return Text(f"{cell:,}")
    # A `Text` shows a user's text as it is, where a `str` could be taken for markup.
    return Text("–") if cell is None else cell if isinstance(cell, Text) else Text(cell)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """Lay out rows, with numbers right-aligned. A table without a head has two columns."""
    made = Table(title=Text(title, "table.title"), title_justify="left", show_header=bool(head))
    cells = list(rows)
    for name, column in zip(head or ("name", "value"), zip(*cells, strict=True), strict=True):
        words = any(isinstance(cell, str | Text) for cell in column)
        made.add_column(name, justify="left" if words else "right", overflow="fold")
    for row in cells:
        made.add_row(*map(shown, row))
    return made


def captioned(made: Table, caption: str) -> RenderableType:
    """Put a caption below a table, as wide as the terminal."""
    return Group(made, Text(caption, "table.caption"))


def verdict(word: str) -> Text:
    """Colour a verdict."""
    return Text(word, STYLES[word])


def of_model_summary(model: ModelSummary) -> str:
    """Name the model, its dtype and its device."""
    revision = f"@{model.revision[:8]}" if model.revision else ""
    return f"{model.id}{revision}, {model.dtype} on {model.device}"


def relation(answer: PairAnswer) -> str:
    """Say what the numbers of a pair's answer are relative to."""
    baseline = answer.baseline
    named = baseline if isinstance(baseline, str) else baseline.model_dump_json()
    shift = f", positions shifted by {answer.position_shift}" if answer.position_shift else ""
    return f"baseline {named}{shift}; stream {answer.stream}; {of_model_summary(answer.model)}"


def of_self_check(found: Mapping[str, Any]) -> RenderableType:
    """Lay out a self-check."""
    facts: dict[str, Cell] = {
        name.replace("_", " "): value
        for name, value in found.items()
        if value is not None and name != "verdict"
    }
    facts["verdict"] = verdict(found["verdict"])
    caption = "every layer's block on a fixed prompt; baseline matched, stream free, float32"
    return captioned(table("self-check", (), facts.items()), caption)


def of_checks(answer: EquivalenceChecks) -> RenderableType:
    """Lay out checks: errors and controls, those of the logits if checked, and the verdict."""
    caption = (
        f"errors relative to the run with context; {answer.apply} in {answer.precision}; "
        f"{relation(answer)}"
    )
    errors = _of_errors(f"equivalence, scope {answer.scope}", answer.checks)
    parts = [captioned(errors, caption), *_of_controls(answer.checks)]
    if answer.logits:
        parts += [_of_errors("logits", answer.logits), *_of_controls(answer.logits)]
        parts.append(_of_divergences(answer.logits))
    return Group(*parts, Text("verdict: ").append(verdict(answer.verdict)))


def _labels(check: Check | LogitsCheck) -> dict[str, Cell]:
    """Label a check with its layer and position, by column."""
    layer: dict[str, Cell] = {"layer": check.layer} if isinstance(check, Check) else {}
    return layer | {"position": check.position}


def _bias_only(check: Check | LogitsCheck) -> dict[str, Cell]:
    """Return the error with Δh at the attention output and no ΔW, if it was asked for."""
    if not isinstance(check, Check) or check.bias_only_relative_error is UNSET:
        return {}
    return {"bias only": check.bias_only_relative_error}


def _of_errors(title: str, checks: Sequence[Check | LogitsCheck]) -> Table:
    """Lay out the errors with the patch and without it, and the verdicts."""
    rows: list[dict[str, Cell]] = [
        {
            **_labels(check),
            "patched": check.relative_error,
            "tolerance": check.tolerance,
            "unpatched": check.unpatched_relative_error,
            **_bias_only(check),
            "verdict": verdict(check.verdict),
        }
        for check in checks
    ]
    return table(title, list(rows[0]), [list(row.values()) for row in rows])


def _of_controls(checks: Sequence[Check | LogitsCheck]) -> Iterator[RenderableType]:
    """Lay out the controls, if there are any."""
    names = list(checks[0].controls or ())
    if names:
        head = [*_labels(checks[0]), *(name.replace("_", " ") for name in names)]
        rows = [
            [*_labels(check).values(), *map((check.controls or {}).get, names)] for check in checks
        ]
        caption = "relative errors with other patches, which must be far larger"
        yield captioned(table("controls", head, rows), caption)


def _of_divergences(logits: Sequence[LogitsCheck]) -> RenderableType:
    """Lay out the divergences of the next-token probabilities."""
    head = ["position", "patched", "tolerance", "unpatched", "likeliest next token"]
    rows = [
        (
            check.position,
            check.kl_divergence,
            check.kl_tolerance,
            check.unpatched_kl_divergence,
            repr(check.top_tokens.with_context[0].text),
        )
        for check in logits
    ]
    caption = "KL divergence of the other run from the run with context, in nats"
    return captioned(table("divergence", head, rows), caption)


def of_updates(answer: WeightUpdates) -> RenderableType:
    """Lay out the updates of each layer and position, and the likeliest next tokens."""
    head = ["layer", "position", "‖ΔW‖", "‖ΔW‖/‖W‖", "‖ΔW‖₂/‖W‖₂", "cos(n, n_C)", "‖Δh‖", "note"]
    rows = [
        (
            update.layer,
            update.position,
            update.norm,
            update.relative_norm,
            update.spectral_share,
            update.mlp_in.cosine,
            update.resid_mid.norm_difference,
            "below noise" if update.below_noise else "",
        )
        for update in answer.updates
    ]
    caption = f"W is the MLP's first weight, n its input; {relation(answer)}"
    made = table("implicit weight updates", head, rows)
    return Group(captioned(made, caption), *map(_of_next_tokens, answer.next_tokens or ()))


def _of_next_tokens(told: NextTokens) -> RenderableType:
    title = f"next tokens after position {told.position} of the query"
    caption = f"KL divergence {shown(told.kl_divergence)} nats, over the whole vocabulary"
    pairs = zip(told.with_context[:LIKELIEST], told.baseline[:LIKELIEST], strict=True)
    rows = [(repr(a.text), a.probability, repr(b.text), b.probability) for a, b in pairs]
    return captioned(table(title, ["with context", "p", "baseline", "p"], rows), caption)


def of_trajectories(answer: Trajectories) -> RenderableType:
    """Lay out ‖ΔW‖ after each step of the reading, for each layer and position."""
    head = ["layer", "position", "read", "‖ΔW‖", "step", "cos to the end", "note"]
    read = [token.text for token in answer.tokens.context]
    rows = [
        (
            layer.layer,
            layer.position,
            repr("".join(read[slice(*step.span)])),
            step.norm,
            step.step_norm,
            step.cosine_to_final,
            "below noise" if layer.below_noise else "",
        )
        for layer in answer.layers
        for step in layer.steps
    ]
    return captioned(table("‖ΔW‖ as the context is read", head, rows), relation(answer))


def of_activations(answer: Activations, file: Path) -> RenderableType:
    """Lay out the contents of a file of activations."""
    head = ["tensor", "layer", "hook point", "positions", "shape", "dtype"]
    rows = [
        (
            f"prompts.{i}.activations.{j}.values",
            activation.layer,
            activation.hook_point,
            _positions(activation.positions),
            " × ".join(map(str, activation.values.shape)) or "1",
            activation.values.dtype.name,
        )
        for i, prompt in enumerate(answer.prompts)
        for j, activation in enumerate(prompt.activations)
    ]
    return captioned(table(f"activations in {file}", head, rows), of_model_summary(answer.model))


def _positions(positions: Sequence[int]) -> str:
    """List positions; abbreviate three or more consecutive ones."""
    first, last = positions[0], positions[-1]
    if len(positions) > 2 and list(positions) == list(range(first, last + 1)):
        return f"{first}…{last}"
    return ", ".join(map(str, positions))


def of_model(answer: LoadedModel) -> RenderableType:
    """Lay out the model, its hook points, and its limits."""
    shape = ("architecture", "n_layers", "d_model", "d_mlp", "n_positions", "vocab_size")
    found = answer.self_check
    worst = f", worst relative error {shown(found.worst_relative_error)}"
    facts: dict[str, Cell] = {
        **{name: getattr(answer, name) for name in shape},
        "weights": answer.model.weights_digest,
        "versions": ", ".join(f"{name} {said}" for name, said in vars(answer.versions).items()),
        "self-check": Text.assemble(verdict(found.verdict), worst),
    }
    head = ["hook point", "module", "side", "width", "TransformerLens"]
    points = [(p.name, p.module, p.side, p.width, p.transformer_lens) for p in answer.hook_points]
    return Group(
        table(of_model_summary(answer.model), (), facts.items()),
        table("hook points", head, points),
        table("limits of one request", (), vars(answer.limits).items()),
    )
