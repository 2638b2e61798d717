"""Measure adapters and recomputed patches on the bundled model, and write the tables of theory.md.

`python -m docs.adapter_figures` takes a minute on a CPU and downloads nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from docs.figures import DOCUMENT, filled, table
from schemas.adapters import Collateral, Figures, Rivals, StaticAdapterRequest, TokenAdapterRequest
from schemas.completions import (
    AdapterPatch,
    Capture,
    Completion,
    CompletionRequest,
    Recompute,
    RecomputedPatch,
)
from schemas.pairs import BaselineName
from service.analysis.adapters.figures import gaps, recovered
from service.analysis.adapters.made import MadeAdapter
from service.analysis.adapters.static import plan_static_adapter
from service.analysis.adapters.token import plan_token_adapter
from service.analysis.completions import plan_completion
from service.analysis.factors import POINTS, layer_update
from service.analysis.next_tokens import last_site, unembedded
from service.analysis.pairs import Pair, resolve_pair
from service.engine import Activations, Fixed, Model, Question, Site, drive, load
from service.theory import StaticUpdate, discrepancy, kl_divergence, static_updates
from tests.adapters.made import write_folder
from tests.analysis.static_subjects import fact, labels, unseen_keys

CONTEXT = "The capital of Zorland is Rome."
QUERY = "\nThe capital of Zorland is"
OTHER = "\nIn Zorland, the capital is"
"""The context and the query of the token adapters, and a query that they were not made for."""
TEXTS = (
    (CONTEXT, QUERY),
    ("apple => river\nstone => cloud\nhorse => green\n", "apple =>"),
    ("cat: animal\nred: colour\ndog: animal\nblue: colour\n", "horse:"),
)
"""Contexts, and prompts to continue."""
TOKENS = 40
"""Generated tokens of each text."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "the defaults": {},
    "`rank: 8`": {"rank": 8},
    "`rank: 1024`": {"rank": 1024},
    '`keep: "none"`': {"keep": "none"},
    "`from_layer: 0`": {"from_layer": 0},
    '`fit_on: "last"`': {"fit_on": "last"},
    '`recipe: "mean_output"`': {"recipe": "mean_output"},
    '`recipe: "mean_output"`, `fit_on: "query+answer"`': {
        "recipe": "mean_output",
        "fit_on": "query+answer",
    },
}
"""Options of a static adapter, as a table names them."""
RECOMPUTE: Sequence[Recompute] = ("all", "new")
PLACES: Sequence[BaselineName] = ("matched", "alone", "anchored")
Updates = Mapping[int, StaticUpdate]
Patch = Recompute | MadeAdapter
Row = Sequence[object]


def static(model: Model, body: Mapping[str, Any], **options: Any) -> MadeAdapter:
    """A static adapter."""
    request = StaticAdapterRequest(**{"kind": "static", **body, **options})
    return drive(model, plan_static_adapter(model, request))


def token(model: Model, **options: Any) -> MadeAdapter:
    """A token adapter that is used without its context from position 0."""
    asked = {"kind": "token", "context": CONTEXT, "query": QUERY, "baseline": "alone", **options}
    return drive(model, plan_token_adapter(model, TokenAdapterRequest(**asked)))


def last_logits(model: Model, query: str, updates: Updates) -> tuple[Tensor, Tensor]:
    """Logits at a query's last token, with the context and without it under updates."""
    pair = resolve_pair(model, CONTEXT, query, "alone", "last")
    return drive(model, _both(model, pair, updates))


def _both(model: Model, pair: Pair, updates: Updates) -> Question[tuple[Tensor, Tensor]]:
    reads = {last_site(model): pair.positions}
    patched = replace(pair.baseline.run(reads), patch=Fixed(updates))
    received = yield [pair.with_context.run(reads), patched]
    streams = torch.stack([run[last_site(model)] for run in received])
    with_context, without = unembedded(model, streams)[0][:, 0].unbind()
    return with_context, without


def peft_logits(model: Model, query: str, updates: Updates, merged: bool = False) -> Tensor:
    """Logits at a query's last token, by transformers with the adapter that PEFT loads."""
    ids = resolve_pair(model, CONTEXT, query, "alone", "last").query
    folder = files("service") / "checkpoints" / "bundled"
    with tempfile.TemporaryDirectory() as at, torch.inference_mode(False), torch.no_grad():
        write_folder(model, updates, Path(at))
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        theirs = PeftModel.from_pretrained(base, at).eval()
        run = theirs.merge_and_unload() if merged else theirs
        found: Tensor = run(torch.tensor([ids]), use_cache=False).logits[0, -1]
    return found


def exact_rows(model: Model) -> list[Row]:
    """Errors of the logits under token adapters, relative to the run with context."""
    bias, weights = (token(model, form=form).updates for form in ("bias", "weights"))
    several = token(model, positions="all").updates
    truth = last_logits(model, QUERY, {})[0]
    found = {
        ("`form: bias`", "its own"): last_logits(model, QUERY, bias),
        ("`form: bias`, by PEFT", "its own"): (truth, peft_logits(model, QUERY, bias)),
        ("`form: weights`", "its own"): last_logits(model, QUERY, weights),
        ("`form: weights`, by PEFT", "its own"): (truth, peft_logits(model, QUERY, weights)),
        ("`form: weights`, merged by PEFT", "its own"): (
            truth,
            peft_logits(model, QUERY, weights, merged=True),
        ),
        ("`positions: all`", "its own"): last_logits(model, QUERY, several),
        ("`form: bias`", "another"): last_logits(model, OTHER, bias),
        ("none", "its own"): last_logits(model, QUERY, {}),
        ("none", "another"): last_logits(model, OTHER, {}),
    }
    return [
        [*name, float(discrepancy(*pair).relative_error), float(kl_divergence(*pair))]
        for name, pair in found.items()
    ]


def generated(model: Model, text: tuple[str, str], patch: Patch, **options: Any) -> Completion[Any]:
    """A completion of a text under a patch, with its agreement."""
    context, prompt = text
    asked: RecomputedPatch | AdapterPatch
    adapter: Any = None
    if isinstance(patch, str):
        asked = RecomputedPatch(context=context, recompute=patch)
    else:
        asked = AdapterPatch(context=context, adapter="kept")
        record = SimpleNamespace(baseline=patch.baseline)
        adapter = SimpleNamespace(id="kept", updates=patch.updates, record=record)
    request = CompletionRequest(
        prompt=prompt,
        patch=asked,
        max_tokens=TOKENS,
        seed=1,
        agreement=True,
        **options,
    )
    return drive(model, plan_completion(model, request, adapter))


def recomputed_rows(model: Model) -> list[Row]:
    """Agreement of generated tokens with the run with context, over all texts."""
    rows: list[Row] = []
    kinds: Mapping[str, Callable[[tuple[str, str]], Patch]] = {
        '`recompute: "all"`': lambda _: "all",
        '`recompute: "new"`': lambda _: "new",
        "the first token's, kept": lambda text: token(model, context=text[0], query=text[1]),
    }
    for name, patch_of in kinds.items():
        for temperature in (0.0, 1.0):
            answers = [
                generated(model, text, patch_of(text), temperature=temperature) for text in TEXTS
            ]
            found = [each for answer in answers if answer.agreement for each in answer.agreement]
            same = f"{sum(each.same_token for each in found)} of {len(found)}"
            rows.append([name, temperature, same, max(each.kl for each in found)])
    return rows


def weights_rows(model: Model) -> list[Row]:
    """Errors of the logits after a generated text that runs again under its last token's ΔW."""
    rows: list[Row] = []
    for recompute in RECOMPUTE:
        pairs = [_again(model, text, recompute) for text in TEXTS]
        errors = [float(discrepancy(*pair).relative_error) for pair in pairs]
        divergences = [float(kl_divergence(*pair)) for pair in pairs]
        rows.append([f"`{recompute}`", max(errors), max(divergences)])
    return rows


def _again(model: Model, text: tuple[str, str], recompute: Recompute) -> tuple[Tensor, Tensor]:
    """Logits of a generated text with context, and without it under the last ΔW and Δh."""
    every = range(model.n_layers)
    capture = Capture(hook_points=list(POINTS["bias"]))
    answer = generated(model, text, recompute, temperature=0.0, capture=capture)
    assert answer.tokens
    assert answer.activations
    # The last token was chosen under the patch of the tokens before it.
    query = [*model.tokenizer.encode(text[1]), *answer.tokens[:-1]]
    pair = resolve_pair(model, text[0], query, None, "last")
    own = Activations(
        {Site(one.layer, one.hook_point): one.values[-1:] for one in answer.activations}, ()
    )

    def question() -> Question[tuple[Tensor, Tensor]]:
        (context,) = yield [pair.with_context.run(pair.reads(every, POINTS["bias"]))]
        blocks = enumerate(model.blocks)
        updates = {
            layer: static_updates(layer_update(layer, context, own, block))[0]
            for layer, block in blocks
        }
        return (yield from _both(model, pair, updates))

    return drive(model, question())


def fitted_rows(model: Model) -> list[Row]:
    """The figures of static adapters with default options, one column for each task."""
    bodies = (labels()[0], fact(), unseen_keys(2)[0])
    columns = [_figures(static(model, body)) for body in bodies]
    return [[name, *(column[name] for column in columns)] for name in columns[0]]


def _figures(made: MadeAdapter) -> dict[str, object]:
    figures, rivals, collateral, fit = (
        made.fields[name] for name in ("held_out", "rivals", "collateral", "fit")
    )
    seen = made.fields["in_sample"]
    assert isinstance(figures, Figures)
    assert isinstance(rivals, Rivals)
    assert isinstance(collateral, Collateral)
    return {
        "fitted queries, held-out queries": f"{fit.k}, {figures.n}",
        "KL(with context ‖ unpatched)": figures.kl_none,
        "`in_sample.recovered`": seen.recovered,
        "`held_out.recovered`": figures.recovered,
        "`beyond_constant`": figures.beyond_constant,
        "`top_1`": figures.top_1,
        "`recovered` of the last answer token": figures.teacher_forced[-1].recovered,
        "`free_run`": figures.free_run,
        "`rivals.constant`": rivals.constant,
        "`rivals.mean_output`": rivals.mean_output,
        "`rivals.mean_output_beyond_constant`": rivals.mean_output_beyond_constant,
        "`rivals.random`": rivals.random,
        "`collateral.mean`": collateral.mean,
        "`collateral.max`": collateral.max,
        "`collateral.context_itself`": collateral.context_itself,
    }


def options_rows(model: Model) -> list[Row]:
    """What the options of a fit change, on the labels."""
    rows: list[Row] = []
    for name, options in OPTIONS.items():
        made = static(model, labels()[0], **options)
        figures, damage = made.fields["held_out"], made.fields["collateral"]
        rows.append(
            [
                name,
                max(layer.rank for layer in made.layers),
                figures.recovered,
                figures.beyond_constant,
                figures.top_1,
                figures.free_run,
                damage.mean,
            ]
        )
    return rows


def places_rows(model: Model) -> list[Row]:
    """`recovered` on the labels' held-out words, where the adapter is used in another run."""
    body = labels()[0]
    rows: list[Row] = []
    for fitted in PLACES:
        patch = Fixed(static(model, body, baseline=fitted).updates)
        used = [drive(model, _recovered(model, body, patch, place)) for place in PLACES]
        rows.append([f"`{fitted}`", *used])
    return rows


def _recovered(
    model: Model, body: Mapping[str, Any], patch: Fixed, place: BaselineName
) -> Question[float | None]:
    """`recovered` at the first answer token, in the runs of a baseline."""
    pairs = [
        resolve_pair(model, body["context"], query, place, "last") for query in body["held_out"]
    ]
    reads = [{last_site(model): pair.positions} for pair in pairs]
    plain = [pair.baseline.run(read) for pair, read in zip(pairs, reads, strict=True)]
    runs = [
        *(pair.with_context.run(read) for pair, read in zip(pairs, reads, strict=True)),
        *plain,
        *(replace(run, patch=patch) for run in plain),
    ]
    received = yield runs
    streams = torch.stack([run[last_site(model)] for run in received])
    truth, none, patched = streams.chunk(3)
    before, after = yield from gaps(model, truth, [none, patched])
    return recovered(after.kl_at(0), before.kl_at(0))


Measured = tuple[Sequence[str], Callable[[Model], Sequence[Row]]]
TABLES: Mapping[str, Measured] = {
    "exact": (["patch", "query", "relative error", "KL in nats"], exact_rows),
    "recomputed": (
        ["patch", "temperature", "tokens equal", "largest KL in nats"],
        recomputed_rows,
    ),
    "weights": (["patch", "relative error", "KL in nats"], weights_rows),
    "fitted": (["figure", "labels", "fact", "unseen keys"], fitted_rows),
    "options": (
        [
            "options",
            "rank",
            "`recovered`",
            "`beyond_constant`",
            "`top_1`",
            "`free_run`",
            "`collateral.mean`",
        ],
        options_rows,
    ),
    "places": (["fitted for", *(f"used `{place}`" for place in PLACES)], places_rows),
}
"""The head and the measurement of each table, by its name in theory.md."""


def measured(names: Sequence[str] = tuple(TABLES)) -> dict[str, str]:
    """Measure tables on the bundled model, in float32."""
    model = load("bundled", revision=None, device="cpu", dtype="float32")
    with torch.inference_mode():
        return {name: table(TABLES[name][0], TABLES[name][1](model)) for name in names}


if __name__ == "__main__":
    document = filled(DOCUMENT.read_text(encoding="utf-8"), measured())
    DOCUMENT.write_text(document, encoding="utf-8")
