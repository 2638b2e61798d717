"""The document in Markdown."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
import transformers

from docs.conformance.activations import (
    BOUNDS,
    CLEAR,
    HALF,
    LOGITS,
    PEER,
    PLANTED,
    Column,
    Conformance,
    Measured,
    Status,
    worse,
)
from docs.conformance.checks import PRECISIONS, SCOPES, Checked, Precision, together
from docs.conformance.prose import (
    ACTIVATIONS,
    CHECKS,
    COMPARED,
    HOOK_POINTS,
    INTRODUCTION,
    filled,
)
from docs.conformance.subjects import IDS, TEXT, TRAINED, Kind

Checks = Mapping[tuple[str, Precision], Checked]
STATUSES: tuple[Status, ...] = ("SUPPORTED", "DEGRADED", "UNSUPPORTED")
"""From best to worst."""
KINDS: tuple[Kind, ...] = ("random", "trained")
NONE = "–"
GATED = "mlp_pre_linear"
ABSENT = "no gate"


@dataclass(frozen=True)
class Entry:
    """The measurements of one checkpoint on one device.

    Args:
        activations: Its captured vectors.
        checks: Its equivalence checks; empty if the checkpoint is refused.
    """

    activations: Conformance
    checks: Checks


@dataclass(frozen=True)
class Group:
    """A row of a summary: a family with random weights, or one trained model.

    Args:
        title: Its name.
        variants: Names of its checkpoints.
        worst: Their worst figures.
        checks: Their equivalence checks together.
    """

    title: str
    variants: tuple[str, ...]
    worst: Conformance
    checks: Checks


def page(entries: Sequence[Entry], models: Sequence[str]) -> str:
    """Return the document.

    Args:
        entries: All measurements.
        models: The pretrained models that the command named.
    """
    served = [entry for entry in entries if entry.activations.columns]
    rows = {kind: groups(served, kind) for kind in KINDS}
    present = {kind: found for kind, found in rows.items() if found}
    parts = [_introduction(entries, models), "## Activations\n", filled(ACTIVATIONS)]
    for kind, found in present.items():
        parts += [f"### {kind.capitalize()} weights\n", *_summary(found)]
    if trained := present.get("trained"):
        parts.append(_compared(trained))
    parts += ["## Equivalence checks\n", filled(CHECKS)]
    for kind, found in present.items():
        parts += [f"### Checks on {kind} weights\n", *_check_table(found)]
    parts += ["## Refused at load\n", *_refused(entries)]
    parts += ["## Every hook point\n", filled(HOOK_POINTS)]
    for found in present.values():
        for group in found:
            parts += _details(group)
    return "\n".join(parts).rstrip() + "\n"


def groups(entries: Sequence[Entry], kind: Kind) -> list[Group]:
    """The rows of a summary, in the order in which they were measured."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        subject = entry.activations.subject
        if subject.kind == kind:
            name = f"`{subject.family}`"
            name = name if kind == "random" else f"{subject.name} ({name})"
            found.setdefault((name, entry.activations.device), []).append(entry)
    return [
        Group(
            title=name,
            variants=tuple(each.activations.subject.name for each in alike),
            worst=merged([each.activations for each in alike]),
            checks={key: together([each.checks[key] for each in alike]) for key in alike[0].checks},
        )
        for (name, _), alike in found.items()
    ]


def merged(found: Sequence[Conformance]) -> Conformance:
    """The worst figures of several checkpoints of one family."""
    columns: dict[Column, dict[str, Measured]] = {}
    effects: dict[str, dict[str, float]] = {}
    for one in found:
        for column, points in one.columns.items():
            for point, measured in points.items():
                of = columns.setdefault(column, {})
                of[point] = worse(of.get(point, measured), measured)
        for point, by_error in one.effects.items():
            for error, effect in by_error.items():
                least = effects.setdefault(point, {})
                least[error] = min(least.get(error, effect), effect)
    refused = {
        column: reason
        for one in found
        for column, reason in one.refused.items()
        if column not in columns
    }
    return replace(found[0], columns=columns, refused=refused, effects=effects)


def column_status(worst: Conformance, column: Column) -> Status:
    """The worst status of any hook point in a column."""
    points = worst.columns.get(column, {})
    found = [worst.status(column, point) for point in points] or ["UNSUPPORTED"]
    return max(found, key=STATUSES.index)


def _summary(rows: Sequence[Group]) -> Iterator[str]:
    """A table with one row for each group and device."""
    heads = [f"{column}, bound {limit(bound)}" for column, bound in BOUNDS.items()]
    yield from _header(["model, device", *heads, "least effect"], "l" * (len(heads) + 2))
    for group in rows:
        worst = group.worst
        cells = []
        for column in BOUNDS:
            status = column_status(worst, column)
            points = worst.columns.get(column)
            if points is None:
                cells.append(f"{status}: refused")
                continue
            cells.append(f"{status} {_measured(column, _worst_of(points.values()))}")
        least, error, point = min(
            (effect, error, point)
            for point, by_error in worst.effects.items()
            for error, effect in by_error.items()
        )
        cells.append(f"{share(least)} ({error}, `{point}`)")
        yield _row([f"{group.title}, {worst.device}", *cells])
    yield ""


def _worst_of(found: Iterable[Measured]) -> Measured:
    """The entry with the largest share of its bound."""
    return max(found, key=lambda each: each.error / each.bound)


def _measured(column: Column, found: Measured) -> str:
    """An error, with its bound if that is not the column's."""
    bound = number(found.bound)
    own = "" if bound == number(BOUNDS[column]) else f" (bound {bound})"
    return number(found.error) + own


def _check_table(rows: Sequence[Group]) -> Iterator[str]:
    """A table with one row for each group and scope."""
    heads = [f"{precision}: error (tolerance)" for precision in PRECISIONS]
    heads += ["least control", "/ tolerance"]
    yield from _header(["model, device", "check", "verdicts", *heads], "lll" + "r" * len(heads))
    for group in rows:
        if not group.checks:
            continue
        title = f"{group.title}, {group.worst.device}"
        for scope in SCOPES:
            found = [group.checks[scope, precision] for precision in PRECISIONS]
            cells = [verdicts(found)]
            cells += [f"{number(one.error)} ({number(one.tolerance)})" for one in found]
            cells += [share(min(one.control for one in found))]
            cells += [multiple(min(one.clearance for one in found))]
            yield _row([title if scope == SCOPES[0] else "", scope, *cells])
    yield ""


def verdicts(found: Sequence[Checked]) -> str:
    """The counted verdicts of both precisions, such as `20 hold, 4 vacuous`."""
    all_of = [verdict for one in found for verdict in one.verdicts]
    words = {"holds": "hold", "vacuous": "vacuous", "fails": "**FAIL**"}
    counted = {word: all_of.count(verdict) for verdict, word in words.items()}  # type: ignore[arg-type]
    return ", ".join(f"{count} {word}" for word, count in counted.items() if count)


def _refused(entries: Sequence[Entry]) -> Iterator[str]:
    """The checkpoints that deltaw refused to load, with the reason."""
    yield from _header(["checkpoint", "family", "dtype", "status", "reason"], "lllll")
    for entry in entries:
        one = entry.activations
        reasons: dict[str, list[str]] = {}
        for column, reason in one.refused.items():
            # float64 runs have float32 weights, which are refused with them.
            if column != "float64":
                reasons.setdefault(reason, []).append(column)
        for reason, dtypes in reasons.items():
            family = f"`{one.subject.family}`"
            yield _row([one.subject.name, family, ", ".join(dtypes), "UNSUPPORTED", reason])
    yield ""


def _details(group: Group) -> Iterator[str]:
    """The table of every hook point of a group."""
    worst = group.worst
    yield f"### {group.title}, {worst.subject.kind} weights, {worst.device}\n"
    if worst.subject.kind == "random":
        yield filled(f"Variants: {', '.join(group.variants)}.\n")
    statuses = {column: column_status(worst, column) for column in BOUNDS}
    peers = [found.peer for found in worst.columns["float32"].values()]
    heads = [f"{column}: {status}" for column, status in statuses.items()]
    if any(peer is not None for peer in peers):
        heads.insert(1, "transformers, float32")
    yield from _header(["hook point", *heads, *PLANTED], "l" + "r" * (len(heads) + len(PLANTED)))
    for point, found in worst.columns["float32"].items():
        cells = []
        for column, expected in statuses.items():
            one = worst.columns.get(column, {}).get(point)
            status = worst.status(column, point)
            said = "" if status == expected else f"{status} "
            cells.append("refused" if one is None else said + _measured(column, one))
        if len(heads) > len(statuses):
            cells.insert(1, NONE if found.peer is None else number(found.peer))
        effects = worst.effects[point]
        cells += [share(effects[error]) if error in effects else NONE for error in PLANTED]
        yield _row([f"`{point}`" if point != LOGITS else point, *cells])
        if point == "mlp_pre" and GATED not in worst.columns["float32"]:
            yield _row([f"`{GATED}`", f"UNSUPPORTED: {ABSENT}", *[""] * (len(cells) - 1)])
    yield ""


def number(value: float, digits: int = 1) -> str:
    """A number such as 2.5e-6."""
    return re.sub(r"e([+-])0*(\d)", lambda e: f"e{e[1].strip('+')}{e[2]}", f"{value:.{digits}e}")


def limit(bound: float) -> str:
    """A bound such as 5e-6 or 0.12."""
    return number(bound, 0) if bound < 1e-3 else f"{bound:.2g}"


def share(value: float) -> str:
    """A ratio with two digits, such as 0.027."""
    return number(value) if value < 1e-3 else f"{value:.2g}"


def multiple(value: float) -> str:
    """A multiple with two digits, such as 92, 7700 or 2e4."""
    return number(value, 0) if value >= 1e4 else f"{float(f'{value:.1e}'):g}"


def _header(heads: Sequence[str], sides: str) -> list[str]:
    """The first two lines of a table; a side is `l` or `r` for each column."""
    return [_row(heads), "|" + "|".join("--:" if side == "r" else "---" for side in sides) + "|"]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def machine() -> str:
    """The processor and the libraries that the figures depend on."""
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    named = re.search(r"^model name\s*: (.+)$", text, re.M)
    cards = f" and {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{named[1] if named else platform.machine()} "
        f"({torch.backends.cpu.get_cpu_capability()}){cards}, one thread; torch "
        f"{torch.__version__}, transformers {transformers.__version__}, numpy {numpy.__version__}"
    )


def _introduction(entries: Sequence[Entry], models: Sequence[str]) -> str:
    """The introduction: the machine, the measured quantities, and the rule for each status."""
    devices = {entry.activations.device for entry in entries}
    missing = [name for name in TRAINED if name not in models]
    notes = ["There are no entries for a GPU, because the machine had none."] * (
        "cuda" not in devices
    )
    if missing:
        notes.append(f"Pretrained models that were not measured: {', '.join(missing)}.")
    return filled(
        INTRODUCTION.format(
            command="make conformance" + (f' MODELS="{" ".join(models)}"' if models else ""),
            notes=" ".join(notes),
            machine=machine(),
            tokens=len(IDS),
            text=TEXT,
            half=f"{HALF:.0f}",
            peer=f"{PEER:.0f}",
            clear=f"{CLEAR:.0f}",
            **{column: limit(bound) for column, bound in BOUNDS.items()},
        )
    )


def _compared(trained: Sequence[Group]) -> str:
    """How the float32 errors on trained weights compare with those of transformers."""
    ratios = [
        one.error / one.peer
        for group in trained
        for one in group.worst.columns["float32"].values()
        if one.peer is not None
    ]
    return filled(COMPARED.format(ratio=f"{max(ratios, default=1.0):.1f}"))
