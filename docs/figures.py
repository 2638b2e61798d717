"""Measure the figures of pretrained models in docs/theory.md, and write them there.

`python -m docs.figures smollm2 gemma3` measures both models, which takes about two minutes and 3 GB
of memory. It replaces their entries in figures.json, from which it then writes the tables of
theory.md and the picture pretrained.png. tests/real/weights.py fetches the models, 0.5 and 1.1 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schemas.activations import HookPoint
from schemas.pairs import BaselineName
from schemas.weight_updates import WeightUpdatesAnswer, WeightUpdatesRequest
from service.analysis.block_checks import Procedure
from service.analysis.factors import POINTS, layer_update
from service.analysis.inputs import resolve_ids
from service.analysis.model_checks import model_checks
from service.analysis.next_tokens import last_site, unembedded
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.weight_updates import plan_weight_updates
from service.engine import Activations, Fixed, Model, Question, Run, Site, drive, load
from service.theory import discrepancy, kl_divergence, norm, static_updates
from tests.real.weights import pretrained

RESULTS = Path(__file__).parent / "figures.json"
DOCUMENT = RESULTS.with_name("theory.md")
PICTURE = RESULTS.with_name("pretrained.png")
NAMES = {"smollm2": "SmolLM2-135M", "gemma3": "Gemma 3 270M"}
"""Names of the models in tables, in their order."""
CAPITALS = "The capital of France is Paris. The capital of Japan is Tokyo. The capital of Italy"
PAIRS = (
    (f"{CAPITALS} is", " Rome"),
    (CAPITALS, " is"),
    ("Hot and cold, big and small, fast and slow, old", " and"),
    ("Anna lives in Oslo, where she works at the harbour. Her brother is a baker in", " the"),
    (
        "def area(width, height):\n    return width * height\n\n\ndef double(number):\n    return",
        " 2",
    ),
    ("One, two, three, four, five, six", ","),
)
"""Contexts, and queries of one token each."""
TEXT = """The harbour of Oslo is quiet in winter. Anna walks there every morning: past the old \
customs house, past the boats, and back. Her brother, who works at the bakery, starts at four; he \
says that bread does not wait.

Shopping list:
- flour: 2 kg
- butter: 500 g

def area(width, height):
    return width * height

Q: What is the capital of Norway? A: Oslo. Q: And of Italy? A: Rome."""
PUNCTUATION = (",", ";", "-", ":", ".", "\n")
"""Texts of one token each."""
LARGE = 10
"""A ratio of norms above which the baseline's stream is called far longer."""
SHOWN = 8
"""Maximum tokens that a row of a table names."""
BASELINES: tuple[BaselineName, ...] = ("matched", "anchored")
EPSILON = torch.finfo(torch.float32).eps
BLOCK = "<!-- figures: {} -->\n\n{}\n\n<!-- end of figures -->"

Results = Mapping[str, Any]
"""The entries of figures.json, by model."""


def measure(name: str) -> dict[str, Any]:
    """Measure one model, in float32.

    Args:
        name: A key of `NAMES`.

    Returns:
        Numbers with three significant digits.
    """
    model = load(str(pretrained(name)), revision=None, device="cpu", dtype="float32")
    with torch.inference_mode():
        found = {
            "norms": norms(model),
            "ratios": ratios(model),
            "massive": massive(model),
            "together": [together(model, *pair) for pair in PAIRS],
            "noise": noise(model),
        }
    rounded: dict[str, Any] = _rounded(found)
    return rounded


def updates(
    model: Model, context: str, query: str, baseline: BaselineName
) -> WeightUpdatesAnswer[Tensor]:
    """The update of every layer, without its factors."""
    request = WeightUpdatesRequest(context=context, query=query, baseline=baseline, include=[])
    answer = drive(model, plan_weight_updates(model, request))
    if not isinstance(answer, WeightUpdatesAnswer):
        raise TypeError(f"expected one update per layer, not {type(answer).__name__}")
    return answer


def norms(model: Model) -> dict[str, Any]:
    """‖h_C‖, ‖h‖ and ‖ΔW‖/‖W‖ of each layer for the first pair, by baseline."""
    found: dict[str, Any] = {}
    for baseline in BASELINES:
        layers = updates(model, *PAIRS[0], baseline).updates
        found[baseline] = {
            "with_context": [layer.resid_mid.norm_with_context for layer in layers],
            "baseline": [layer.resid_mid.norm_baseline for layer in layers],
            "relative": [
                layer.norm / math.hypot(*(norm for norm, _ in model.weight_norms[layer.layer]))
                for layer in layers
            ],
        }
    return found


def ratios(model: Model) -> dict[str, Any]:
    """The largest ‖h‖/‖h_C‖ of any layer for queries of one token after the first context.

    The queries are the distinct tokens of the text. `large` are those whose ratio is above
    `LARGE`, the largest first.
    """
    found: dict[str, Any] = {}
    sites = [Site(layer, "resid_mid") for layer in range(model.n_layers)]
    queries = sorted(set(resolve_ids(model, TEXT, ())))
    for baseline in BASELINES:
        largest: dict[int, float] = {}
        for query in queries:
            pair = resolve_pair(model, PAIRS[0][0], [query], baseline, "last")
            with_context, without = (
                torch.stack([vectors[site] for site in sites])
                for vectors in drive(model, _both(pair, sites))
            )
            largest[query] = float((norm(without) / norm(with_context)).max())
        large = sorted((id for id in queries if largest[id] > LARGE), key=lambda id: -largest[id])
        found[baseline] = {
            "queries": len(queries),
            "median": statistics.median(largest.values()),
            "largest": max(largest.values()),
            "large": [model.tokenizer.token(id).text for id in large],
        }
    return found


def _both(pair: Pair, sites: Sequence[Site]) -> Question[Sequence[Activations]]:
    """The query's last token in the run with context and in the baseline run."""
    reads = dict.fromkeys(sites, pair.positions)
    return (yield [pair.with_context.run(reads), pair.baseline.run(reads)])


def massive(model: Model) -> dict[str, Any]:
    """The first token's stream at the layer where it is longest, beside those of the other tokens.

    The text begins as the default baseline's run with context does.
    """
    ids = beginning(model) + resolve_ids(model, TEXT, ())
    stream = torch.stack(list(read(model, ids, "resid_post").values())).double()
    lengths = norm(stream)
    layer = int(lengths[:, 0].argmax())
    return {
        "token": model.tokenizer.token(ids[0]).text,
        "layer": layer,
        "norm": float(lengths[layer, 0]),
        "entry": float(stream[layer, 0].abs().max()),
        "dimension": int(stream[layer, 0].abs().argmax()),
        "median": float(lengths[layer, 1:].median()),
    }


def together(model: Model, context: str, query: str) -> dict[str, Any]:
    """Errors of the logits, with all updates of the free stream at once and with no patch.

    `sequential` is the verdict on the updates of the sequential stream.
    """
    pair = resolve_pair(model, context, query, None, "last")
    procedure = Procedure("model", torch.float32, controls=False)
    (check,) = drive(model, model_checks(model, pair, [], procedure))[1]
    with_context, patched = drive(model, _free_patches(model, pair))
    return {
        "none": {"error": check.unpatched_relative_error, "kl": check.unpatched_kl_divergence},
        "free": {
            "error": float(discrepancy(with_context, patched).relative_error),
            "kl": float(kl_divergence(with_context, patched)),
        },
        "sequential": check.verdict,
    }


def _free_patches(model: Model, pair: Pair) -> Question[tuple[Tensor, Tensor]]:
    """The logits with context, and without it under all updates of the free stream."""
    reads = pair.reads(range(model.n_layers), POINTS["bias"])
    last = pair.reads([model.n_layers - 1], ["resid_post"])
    context, plain = yield [pair.with_context.run({**reads, **last}), pair.baseline.run(reads)]
    updates = {
        layer: static_updates(layer_update(layer, context, plain, block))[0]
        for layer, block in enumerate(model.blocks)
    }
    (patched,) = yield [replace(pair.baseline.run(last), patch=Fixed(updates))]
    streams = torch.stack([run[last_site(model)] for run in (context, patched)])
    with_context, without = unembedded(model, streams)[0][:, 0].unbind()
    return with_context, without


def noise(model: Model) -> dict[str, Any]:
    """‖n − n₆₄‖/(ε‖n₆₄‖), where n is mlp_in in float32 and n₆₄ is mlp_in in float64.

    `text` covers all rows of a text in all layers; `alone` and `anchored` cover one-token texts,
    with the largest value of any layer.
    """
    rows = _noise(model, beginning(model) + resolve_ids(model, TEXT, ()))
    single = {text: resolve_ids(model, text, ())[-1:] for text in PUNCTUATION}
    return {
        "text": {
            "median": float(rows.median()),
            "99 %": float(rows.flatten().quantile(0.99)),
            "largest": float(rows.max()),
        },
        "alone": {text: float(_noise(model, ids).max()) for text, ids in single.items()},
        "anchored": {
            text: float(_noise(model, model.tokenizer.anchor + ids)[:, -1].max())
            for text, ids in single.items()
        },
    }


def _noise(model: Model, ids: Sequence[int]) -> Tensor:
    """The noise of each layer and row, (layers, rows)."""
    rounded, exact = (
        torch.stack(list(read(model, ids, "mlp_in", dtype).values())).double()
        for dtype in (torch.float32, torch.float64)
    )
    return discrepancy(exact, rounded).relative_error / EPSILON


def beginning(model: Model) -> tuple[int, ...]:
    """Ids that begin the run with context under the default baseline."""
    return model.tokenizer.anchor


def read(
    model: Model, ids: Sequence[int], point: HookPoint, dtype: torch.dtype = torch.float32
) -> Activations:
    """All rows of a text at one hook point of every layer."""

    def question() -> Question[Activations]:
        sites = [Site(layer, point) for layer in range(model.n_layers)]
        rows = range(len(ids))
        (found,) = yield [Run(ids, rows, dict.fromkeys(sites, rows), dtype)]
        return found

    return drive(model, question())


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:,.3g}" if isinstance(value, float) and abs(value) < 1000 else _large(value)


def _large(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, float) else str(value)


def code(text: str) -> str:
    """A text as code in a table."""
    return "`" + text.replace("\n", "\\n").replace("|", "\\|") + "`"


def norms_table(results: Results) -> str:
    """Norms at the first layer, at each quarter and at the last layer; ‖h_C‖ with the anchor."""
    rows = []
    for name, found in results.items():
        last = len(found["norms"]["matched"]["baseline"]) - 1
        for layer in sorted({round(last * quarter / 4) for quarter in range(5)}):
            context = found["norms"]["anchored"]["with_context"][layer]
            each = [found["norms"][baseline] for baseline in BASELINES]
            others = (one[key][layer] for one in each for key in ("baseline", "relative"))
            rows.append([NAMES[name], layer, context, *others])
    columns = [f"`{baseline}`: {what}" for baseline in BASELINES for what in ("‖h‖", "‖ΔW‖/‖W‖")]
    return table(["model", "layer", "‖h_C‖", *columns], rows)


def ratios_table(results: Results) -> str:
    """The distribution of the ratio in each model, by baseline."""
    rows = []
    for name, found in results.items():
        for baseline in BASELINES:
            each = found["ratios"][baseline]
            large = " ".join(map(code, each["large"][:SHOWN]))
            above = f"{len(each['large'])} of {each['queries']}"
            rows.append(
                [NAMES[name], code(baseline), each["median"], each["largest"], above, large]
            )
    head = ["model", "baseline", "median", "largest", f"above {LARGE}", "such as"]
    return table(head, rows)


def massive_table(results: Results) -> str:
    """The first token's stream of each model."""
    rows = []
    for name, found in results.items():
        each = found["massive"]
        entry = f"{each['entry']:,.0f}, at {each['dimension']}"
        rows.append(
            [NAMES[name], code(each["token"]), each["layer"], each["norm"], entry, each["median"]]
        )
    head = [
        "model",
        "first token",
        "layer",
        "‖r'‖",
        "its largest entry",
        "median ‖r'‖ of the others",
    ]
    return table(head, rows)


def together_table(results: Results) -> str:
    """The errors of each query in each model."""
    keys = [(patch, error) for error in ("error", "kl") for patch in ("none", "free")]
    rows = [
        [NAMES[name], code(query), *(found["together"][i][patch][error] for patch, error in keys)]
        for name, found in results.items()
        for i, (_, query) in enumerate(PAIRS)
    ]
    head = ["no patch: error", "free patches: error", "no patch: KL", "free patches: KL"]
    return table(["model", "query", *head], rows)


def noise_table(results: Results) -> str:
    """Quantiles over a text, and one-token texts."""
    rows: list[list[object]] = []
    for name, found in results.items():
        each = found["noise"]
        rows.append([NAMES[name], "all rows and layers of a text", *each["text"].values()])
        for kind, told in (("alone", "by itself"), ("anchored", "after the anchor")):
            worst = max(each[kind], key=each[kind].__getitem__)
            most = f"{_cell(each[kind][worst])}, {code(worst)}"
            rows.append(
                [
                    NAMES[name],
                    f"punctuation {told}",
                    statistics.median(each[kind].values()),
                    "–",
                    most,
                ]
            )
    return table(["model", "rows", "median", "99 %", "largest"], rows)


TABLES: Mapping[str, Callable[[Results], str]] = {
    "massive": massive_table,
    "ratios": ratios_table,
    "norms": norms_table,
    "together": together_table,
    "noise": noise_table,
}
"""The tables of theory.md by their name there."""


def filled(document: str, tables: Mapping[str, str]) -> str:
    """The document with these tables, each in the place of its name."""
    for name, made in tables.items():
        start, end = BLOCK.format(name, "\0").split("\0")
        before, opened, rest = document.partition(start)
        _, closed, after = rest.partition(end)
        if not opened or not closed:
            raise ValueError(f"the document has no place for the table {name!r}")
        document = before + start + made + end + after
    return document


def written(document: str, results: Results) -> str:
    """The document with its tables filled from the results."""
    return filled(document, {name: made(results) for name, made in TABLES.items()})


def stored() -> dict[str, Any]:
    """The results in figures.json."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def digest(results: Results) -> str:
    """A digest of the results, which the picture stores."""
    return hashlib.sha256(json.dumps(results).encode()).hexdigest()


def draw(results: Results, file: Path = PICTURE) -> None:
    """Draw norms by layer, one column for each model.

    Args:
        results: The results of every model.
        file: PNG to write. It holds the digest of the results.
    """
    import matplotlib
    from matplotlib import ticker
    from matplotlib.figure import Figure

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axes = figure.subplots(2, len(results), sharex="col", squeeze=False)
        for column, (name, found) in enumerate(results.items()):
            above, below = axes[:, column]
            for baseline, colour in zip(BASELINES, ("#b3541e", "#1f5fa8"), strict=True):
                each = found["norms"][baseline]
                above.plot(each["baseline"], color=colour, label=f"‖h‖, {baseline}")
                below.plot(each["relative"], color=colour)
            # ‖h_C‖ with the anchor and without it would be one line.
            context = found["norms"]["anchored"]["with_context"]
            above.plot(context, ":", color="black", label="‖h_C‖")
            above.set(yscale="log", title=NAMES[name])
            below.set(xlabel="layer", ylim=(0, None))
            below.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
            for panel in (above, below):
                panel.grid(color="#e6e6e6")
        axes[0, 0].set_ylabel("norm of resid_mid")
        axes[1, 0].set_ylabel("‖ΔW‖/‖W‖")
        axes[0, 0].legend(frameon=False)
        figure.savefig(file, dpi=110, metadata={"Description": digest(results), "Software": None})


def main() -> None:
    """Measure the models that the command line names; without one, only write the document."""
    parser = argparse.ArgumentParser(prog="python -m docs.figures")
    parser.add_argument("models", nargs="*", help=f"models to measure: {', '.join(NAMES)}")
    models = parser.parse_args().models
    if unknown := set(models) - set(NAMES):
        parser.error(f"there is no model {unknown.pop()}; models are {', '.join(NAMES)}")
    results = stored() if RESULTS.exists() else {}
    results |= {name: measure(name) for name in models}
    results = {name: results[name] for name in NAMES if name in results}
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    document = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(written(document, results), encoding="utf-8")
    draw(results)


if __name__ == "__main__":
    main()
