"""Answers as tables. The line below each says what its numbers are relative to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deltaw_client import Activations, EquivalenceChecks, LoadedModel, WeightUpdates
from schemas.common import ModelSummary
from schemas.equivalence_checks import Check, LogitsCheck
from schemas.pairs import PairAnswer
from schemas.weight_updates import LikelyToken, NextTokens

STYLES = {"holds": "bold green", "fails": "bold red", "vacuous": "bold yellow"}
EXACT = "bias_only_at_attention"
"""The control that is no worse: Δh at attention's output, with no ΔW at all."""
LIKELIEST = 5
"""Next tokens that are shown of the ten that there are."""


def number(value: float | None, form: str = ".3g") -> str:
    """A number for a person; a dash where there is none."""
    return "–" if value is None else f"{value:{form}}"


def verdict(word: str) -> Text:
    """A verdict in its colour."""
    return Text(word, STYLES[word])


def table(title: str, columns: Iterable[str] = (), words: Collection[str] = ()) -> Table:
    """An empty table: numbers to the right, the columns of `words` to the left; no columns, no
    head."""
    # A `Text` is not searched for markup, which what a user wrote may look like.
    made = Table(title=Text(title, "table.title"), title_justify="left", show_header=bool(columns))
    for column in columns:
        made.add_column(column, justify="left" if column in words else "right", overflow="fold")
    return made


def captioned(made: Table, caption: str) -> RenderableType:
    """A table with what its numbers are relative to below it, as wide as the terminal."""
    return Group(made, Text(caption, "table.caption"))


def of_model_summary(model: ModelSummary) -> str:
    """Which weights, in what, where."""
    revision = f"@{model.revision[:8]}" if model.revision else ""
    return f"{model.id}{revision}, {model.dtype} on {model.device}"


def relation(answer: PairAnswer) -> str:
    """What the numbers of a pair's answer are relative to."""
    baseline = answer.baseline
    named = baseline if isinstance(baseline, str) else baseline.model_dump_json()
    shift = f", positions shifted by {answer.position_shift}" if answer.position_shift else ""
    return f"baseline {named}{shift}; stream {answer.stream}; {of_model_summary(answer.model)}"


def of_self_check(found: Mapping[str, Any]) -> RenderableType:
    """What the self-check found."""
    caption = "every layer's block on a fixed prompt; baseline matched, stream free, float32"
    made = table("self-check")
    for name, value in found.items():
        if name != "verdict" and value is not None:
            told = number(value) if isinstance(value, float) else str(value)
            made.add_row(name.replace("_", " "), told)
    made.add_row("verdict", verdict(found["verdict"]))
    return captioned(made, caption)


def of_checks(answer: EquivalenceChecks) -> RenderableType:
    """Each layer and position, the logits where they were checked, and the verdict of all."""
    caption = (
        f"relative errors, of the run with context; {answer.apply} in {answer.precision}; "
        f"{relation(answer)}"
    )
    errors = _of_errors(f"equivalence, scope {answer.scope}", answer.checks)
    parts = [captioned(errors, caption), *_of_controls(answer.checks)]
    if answer.logits:
        parts += [_of_errors("logits", answer.logits), *_of_controls(answer.logits)]
        parts.append(_of_divergences(answer.logits))
    return Group(*parts, Text("verdict: ").append(verdict(answer.verdict)))


def _place(check: Check | LogitsCheck) -> dict[str, str]:
    """Where a check was made, by columns."""
    layer = {"layer": str(check.layer)} if isinstance(check, Check) else {}
    return layer | {"position": str(check.position)}


def _of_errors(title: str, checks: Sequence[Check | LogitsCheck]) -> Table:
    """Errors with the patch and without it, and what was made of them."""
    head = [*_place(checks[0]), "patched", "tolerance", "unpatched", "verdict"]
    made = table(title, head, ["verdict"])
    for check in checks:
        made.add_row(
            *_place(check).values(),
            number(check.relative_error, ".1e"),
            number(check.tolerance, ".1e"),
            number(check.unpatched_relative_error),
            verdict(check.verdict),
        )
    return made


def _of_controls(checks: Sequence[Check | LogitsCheck]) -> Iterator[RenderableType]:
    """A table of the controls, where there are any."""
    names = list(checks[0].controls or ())
    if not names:
        return
    head = [*_place(checks[0]), *(name.replace("_", " ") for name in names)]
    made = table("controls", head)
    for check in checks:
        found = check.controls or {}
        made.add_row(*_place(check).values(), *(number(found.get(name)) for name in names))
    exact = "; bias only at attention is exact too" if EXACT in names else ""
    yield captioned(made, f"relative errors with other patches, which must be far worse{exact}")


def _of_divergences(logits: Sequence[LogitsCheck]) -> RenderableType:
    """What the logits come to as probabilities."""
    head = ["position", "patched", "tolerance", "unpatched", "likeliest next token"]
    made = table("divergence", head, ["likeliest next token"])
    for check in logits:
        made.add_row(
            str(check.position),
            number(check.kl_divergence, ".1e"),
            number(check.kl_tolerance, ".1e"),
            number(check.unpatched_kl_divergence),
            Text(repr(check.top_tokens.with_context[0].text)),
        )
    return captioned(made, "KL of the run with context from the other, in nats")


def of_updates(answer: WeightUpdates) -> RenderableType:
    """Each layer and position, and what may come next."""
    head = ["layer", "position", "‖ΔW‖", "‖ΔW‖/‖W‖", "‖ΔW‖₂/‖W‖₂", "cos(n, n_C)", "‖Δh‖", "note"]
    caption = f"W is the MLP's first weight, n what it multiplies; {relation(answer)}"
    made = table("implicit weight updates", head, ["note"])
    for update in answer.updates:
        made.add_row(
            str(update.layer),
            str(update.position),
            number(update.norm),
            number(update.relative_norm),
            number(update.spectral_share),
            number(update.mlp_in.cosine),
            number(update.resid_mid.norm_difference),
            "below noise" if update.below_noise else "",
        )
    return Group(captioned(made, caption), *map(_of_next_tokens, answer.next_tokens or ()))


def _of_next_tokens(told: NextTokens) -> RenderableType:
    title = f"what comes after position {told.position} of the query"
    caption = f"KL {number(told.kl_divergence)} nats, over the whole vocabulary"
    head = ["with context", "p", "baseline", "p "]
    made = table(title, head, ["with context", "baseline"])
    pairs = zip(told.with_context[:LIKELIEST], told.baseline[:LIKELIEST], strict=True)
    for with_context, baseline in pairs:
        made.add_row(*_likely(with_context), *_likely(baseline))
    return captioned(made, caption)


def _likely(token: LikelyToken) -> tuple[Text, str]:
    return Text(repr(token.text)), number(token.probability)


def of_activations(answer: Activations, file: Path) -> RenderableType:
    """What a file of activations holds."""
    head = ["tensor", "layer", "hook point", "positions", "shape", "dtype"]
    words = ["tensor", "hook point", "dtype"]
    made = table(f"activations in {file}", head, words)
    for i, prompt in enumerate(answer.prompts):
        for j, activation in enumerate(prompt.activations):
            made.add_row(
                f"prompts.{i}.activations.{j}.values",
                str(activation.layer),
                activation.hook_point,
                _positions(activation.positions),
                " × ".join(map(str, activation.values.shape)) or "1",
                activation.values.dtype.name,
            )
    return captioned(made, of_model_summary(answer.model))


def _positions(positions: Sequence[int]) -> str:
    """Several in a row by their ends."""
    first, last = positions[0], positions[-1]
    if len(positions) > 2 and positions == list(range(first, last + 1)):
        return f"{first}…{last}"
    return ", ".join(map(str, positions))


def of_model(answer: LoadedModel) -> RenderableType:
    """What is loaded, its hook points, its limits."""
    about = table(of_model_summary(answer.model))
    for name in ("architecture", "n_layers", "d_model", "d_mlp", "n_positions", "vocab_size"):
        about.add_row(name, str(getattr(answer, name)))
    about.add_row("weights", Text(answer.model.weights_digest, overflow="fold"))
    about.add_row("versions", ", ".join(f"{n} {v}" for n, v in asdict(answer.versions).items()))
    found = answer.self_check
    worst = f", worst relative error {number(found.worst_relative_error, '.1e')}"
    about.add_row("self-check", Text.assemble(verdict(found.verdict), worst))
    names = ["hook point", "module", "side", "width", "TransformerLens"]
    points = table("hook points", names, [name for name in names if name != "width"])
    for point in answer.hook_points:
        points.add_row(
            point.name, point.module, point.side, str(point.width), point.transformer_lens or "–"
        )
    limits = table("what one request may bring")
    for name, value in asdict(answer.limits).items():
        limits.add_row(name, f"{value:,}")
    return Group(about, points, limits)
