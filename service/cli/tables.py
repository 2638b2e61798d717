"""Answers as tables. A caption below each says what its numbers are relative to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deltaw_client import (
    UNSET,
    Activations,
    EquivalenceChecks,
    LoadedModel,
    Sweep,
    Trajectories,
    WeightUpdates,
)
from schemas.common import ModelSummary
from schemas.equivalence_checks import Check, LogitsCheck
from schemas.pairs import PairAnswer
from schemas.weight_updates import NextTokens, Update

Cell = float | str | Text | None

STYLES = {"holds": "bold green", "fails": "bold red", "vacuous": "bold yellow"}
LIKELIEST = 5
"""Number of next tokens shown; the answer has ten."""
ERRORS = {
    "layer": "layer",
    "position": "position",
    "relative_error": "patched",
    "tolerance": "tolerance",
    "unpatched_relative_error": "unpatched",
    "bias_only_relative_error": "bias only",
}
"""The head of each column of a check's errors, by field."""
DIVERGENCE = attrgetter("position", "kl_divergence", "kl_tolerance", "unpatched_kl_divergence")
WEIGHT = attrgetter("norm", "relative_norm", "spectral_share")
INPUTS = attrgetter("mlp_in.cosine", "resid_mid.norm_difference")


def shown(cell: Cell) -> Text:
    """Format a number to three digits, an integer in full; None is a dash."""
    if isinstance(cell, float):
        return Text(f"{cell:.3g}")
    if isinstance(cell, int):
        return Text(f"{cell:,}")
    # A `Text` shows a user's text as it is, where a `str` could be taken for markup.
    return Text("–") if cell is None else cell if isinstance(cell, Text) else Text(cell)


def table(
    title: str, head: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str = ""
) -> RenderableType:
    """Lay out rows, with numbers right-aligned. A table without a head has two columns."""
    made = Table(title=Text(title, "table.title"), title_justify="left", show_header=bool(head))
    cells = list(rows)
    for name, column in zip(head or ("name", "value"), zip(*cells, strict=True), strict=True):
        words = any(isinstance(cell, str | Text) for cell in column)
        made.add_column(name, justify="left" if words else "right", overflow="fold")
    for row in cells:
        made.add_row(*map(shown, row))
    # A table's own caption would be no wider than the table.
    return Group(made, Text(caption, "table.caption")) if caption else made


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
    caption = "every layer's block on a fixed prompt; default baseline, stream free, float32"
    return table("self-check", (), facts.items(), caption)


def of_checks(answer: EquivalenceChecks) -> RenderableType:
    """Lay out checks: errors and controls, those of the logits if checked, and the verdict."""
    caption = (
        f"errors relative to the run with context; form {answer.form}, {answer.apply} in "
        f"{answer.precision}; {relation(answer)}"
    )
    parts = [*_of_errors(f"equivalence, scope {answer.scope}", answer.checks, caption)]
    if logits := answer.logits:
        head = ["position", "patched", "tolerance", "unpatched", "likeliest next token"]
        rows = [
            (*DIVERGENCE(check), repr(check.top_tokens.with_context[0].text)) for check in logits
        ]
        caption = "KL divergence of the other run from the run with context, in nats"
        parts += [*_of_errors("logits", logits), table("divergence", head, rows, caption)]
    reasons = dict.fromkeys(check.vacuous_reason for check in answer.checks if check.vacuous_reason)
    parts += [Text(f"vacuous: {reason}") for reason in reasons]
    return Group(*parts, Text("verdict: ").append(verdict(answer.verdict)))


def _of_errors(
    title: str, checks: Sequence[Check | LogitsCheck], caption: str = ""
) -> Iterator[RenderableType]:
    """Lay out the errors with the patch and without it, and the controls, if there are any."""
    # Checks of logits have no layer; the error with Δh alone is there if it was asked for.
    names = [name for name in ERRORS if getattr(checks[0], name, UNSET) is not UNSET]
    head = [*map(ERRORS.__getitem__, names), "verdict"]
    rows = [[*(getattr(check, name) for name in names), verdict(check.verdict)] for check in checks]
    yield table(title, head, rows, caption)
    if controls := list(checks[0].controls or ()):
        labels = names.index("position") + 1
        head = [*head[:labels], *(name.replace("_", " ") for name in controls)]
        errors = [[*map((check.controls or {}).get, controls)] for check in checks]
        rows = [row[:labels] + others for row, others in zip(rows, errors, strict=True)]
        caption = "relative errors with other patches, which must be far larger"
        yield table("controls", head, rows, caption)


def of_updates(answer: WeightUpdates) -> RenderableType:
    """Lay out the updates of each layer and position, and the likeliest next tokens."""
    several = any(len(update.weights) > 1 for update in answer.updates)
    head = ["layer", "position", *(["weight"] if several else [])]
    head += ["‖ΔW‖", "‖ΔW‖/‖W‖", "‖ΔW‖₂/‖W‖₂", "cos(n, n_C)", "‖Δh‖", "note"]
    rows = [row for update in answer.updates for row in _of_update(update, several)]
    caption = f"W is the MLP's first weight, n its input; {relation(answer)}"
    made = table("implicit weight updates", head, rows, caption)
    return Group(made, *map(_of_next_tokens, answer.next_tokens or ()))


def _of_update(update: Update[Any], several: bool) -> Iterator[Sequence[Cell]]:
    """The rows of an update. If MLPs have several first weights, there is a row for all of them
    together and one for each; else there is one row."""
    note = "below noise" if update.below_noise else ""
    place = (update.layer, update.position)
    if not several:
        yield *place, *WEIGHT(update.weights[0]), *INPUTS(update), note
        return
    yield *place, "all", update.norm, None, None, *INPUTS(update), note
    for weight in update.weights:
        yield *place, weight.name.split(".")[-2], *WEIGHT(weight), None, None, ""


def _of_next_tokens(told: NextTokens) -> RenderableType:
    title = f"next tokens after position {told.position} of the query"
    caption = f"KL divergence {shown(told.kl_divergence)} nats, over the whole vocabulary"
    pairs = zip(told.with_context[:LIKELIEST], told.baseline[:LIKELIEST], strict=True)
    rows = [(repr(a.text), a.probability, repr(b.text), b.probability) for a, b in pairs]
    return table(title, ["with context", "p", "baseline", "p"], rows, caption)


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
    return table("‖ΔW‖ as the context is read", head, rows, relation(answer))


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
    return table(f"activations in {file}", head, rows, of_model_summary(answer.model))


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
        "first weights": ", ".join(answer.first_weights),
        "positions": answer.positions,
        "anchor": answer.anchor,
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


def of_sweep(swept: Sweep) -> RenderableType:
    """Lay out the number of pairs, and each kind of failure with its first pair."""
    facts = {name: getattr(swept, name) for name in ("pairs", "answered", "failed", "kept")}
    summary = table("sweep", (), facts.items(), f"in {swept.path}")
    failures: dict[str, list[int]] = {}
    for line in swept if swept.failed else ():
        if line.error is not None:
            failures.setdefault(getattr(line.error, "code", "timeout"), []).append(line.index)
    rows = [(code, len(indices), indices[0]) for code, indices in failures.items()]
    head = ["problem", "pairs", "first pair"]
    return Group(summary, table("failed pairs", head, rows)) if rows else summary
