"""Answers as tables. The line below each says what its numbers are relative to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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
        made.add_column(column, justify="left" if column in words else "right")
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
    controls = list(answer.checks[0].controls or ())
    head = ["layer", "position", *ERRORS, *(name.replace("_", " ") for name in controls)]
    caption = (
        f"relative errors, of the run with context; {answer.apply} in {answer.precision}; "
        f"{relation(answer)}"
    )
    made = table(f"equivalence, scope {answer.scope}", [*head, "verdict"], ["verdict"])
    for check in answer.checks:
        made.add_row(str(check.layer), str(check.position), *_errors(check, controls))
    parts = [captioned(made, caption)]
    if answer.logits is not None:
        parts.append(_of_logits(answer.logits))
    return Group(*parts, Text("verdict: ").append(verdict(answer.verdict)))


ERRORS = ("patched", "tolerance", "unpatched")


def _errors(check: Check | LogitsCheck, controls: Sequence[str]) -> Iterable[str | Text]:
    """What both kinds of check have: errors, controls, the verdict."""
    yield number(check.relative_error, ".1e")
    yield number(check.tolerance, ".1e")
    yield number(check.unpatched_relative_error)
    for name in controls:
        yield number((check.controls or {}).get(name))
    yield verdict(check.verdict)


def _of_logits(logits: Sequence[LogitsCheck]) -> RenderableType:
    controls = list(logits[0].controls or ())
    head = ["position", *ERRORS, *(name.replace("_", " ") for name in controls)]
    more = ["verdict", "KL", "KL unpatched", "next"]
    caption = "KL of the run with context from the patched one, and from the baseline, in nats"
    made = table("logits", [*head, *more], ["verdict", "next"])
    for check in logits:
        likeliest = check.top_tokens.with_context[0].text
        made.add_row(
            str(check.position),
            *_errors(check, controls),
            number(check.kl_divergence, ".1e"),
            number(check.unpatched_kl_divergence),
            Text(repr(likeliest)),
        )
    return captioned(made, caption)


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
    about.add_row("weights", answer.model.weights_digest)
    about.add_row("versions", ", ".join(f"{n} {v}" for n, v in answer.versions))
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
    for name, value in answer.limits:
        limits.add_row(name, f"{value:,}")
    return Group(about, points, limits)
