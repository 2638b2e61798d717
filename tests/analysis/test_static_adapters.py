"""Static adapters of random models, compared with an oracle of dense matrices in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from schemas.adapters import Figures, StaticAdapterRequest
from service.analysis.adapters import queries as resolution
from service.analysis.adapters.keep import COLLATERAL
from service.analysis.adapters.made import MadeAdapter, fitted_tokens
from service.analysis.adapters.static import plan_static_adapter
from service.engine import Activations, Model, Run, drive, load
from service.engine.prefixes import Prefixes
from service.engine.walk import forward
from service.errors import (
    EmptyQuery,
    IllConditioned,
    LayerOutOfRange,
    NotSupported,
    PromptTooLong,
    Refused,
    TooFewQueries,
)
from tests import oracle
from tests.analysis.subjects import Subject, distance
from tests.checkpoints import save_tiny
from tests.oracle import static as theirs
from tests.oracle.checkpoint import Array

CONTEXT, KEEP = range(30, 36), ([50, 51, 52, 53], [54, 55, 56])
TOKENS, RANK = 3, 5
FEW = COLLATERAL[:3]
only_tiny = pytest.mark.parametrize("subject", ["tiny"], indirect=True)


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure damage on three texts, because a byte-level tokenizer makes long runs of them."""
    monkeypatch.setattr(resolution, "COLLATERAL", FEW)


def body_of(subject: Subject, measured: int = 8, **options: Any) -> StaticAdapterRequest:
    """A request with four fitted queries of three ids each, and some held-out ones."""
    asked = [list(subject.ids(range(3 * i, 3 * i + 3))) for i in range(1, 5 + measured)]
    return StaticAdapterRequest(
        **{
            "kind": "static",
            "context": list(subject.ids(CONTEXT)),
            "queries": asked[:4],
            "held_out": asked[4:],
            "answer_tokens": TOKENS,
            "rank": RANK,
            "keep": [list(subject.ids(text)) for text in KEEP],
            **options,
        }
    )


def made(subject: Subject, body: StaticAdapterRequest) -> MadeAdapter:
    """The adapter of a request."""
    return drive(subject.model, plan_static_adapter(subject.model, body))


def prompts_of(
    subject: Subject, body: StaticAdapterRequest, queries: Sequence[Any]
) -> tuple[list[oracle.Prompt], list[oracle.Prompt]]:
    """The oracle's prompts of these queries, with context and in use."""
    pairs = []
    for query in queries:
        asked = oracle.ask(
            subject.oracle,
            subject.ids(CONTEXT),
            tuple(query),
            body.baseline or "matched",
            anchor=next(iter(subject.model.tokenizer.anchor), None),
        )
        pairs.append((asked.full_prompt, asked.baseline_prompt))
    return [one for one, _ in pairs], [one for _, one in pairs]


def oracles(
    subject: Subject, body: StaticAdapterRequest, **options: Any
) -> dict[int, oracle.Patch]:
    """The oracle's adapter of the same request."""
    full, base = prompts_of(subject, body, body.queries)
    answers = [theirs.greedy(subject.oracle, one, TOKENS)[:-1] for one in full]
    rows = {"query+answer": range(1, 5), "answer": range(2, 5), "last": range(2, 3)}[
        fitted_tokens(body)
    ]
    head = base[0].ids[:-3]
    kept = [] if isinstance(body.keep, str) else [(*head, *text) for text in body.keep]
    asked = theirs.StaticFit(
        with_context=[theirs.extended(*one) for one in zip(full, answers, strict=True)],
        base=[theirs.extended(*one) for one in zip(base, answers, strict=True)],
        fit_rows=[rows] * len(full),
        lengths=[3 + TOKENS - 1] * len(full),
        keep=[oracle.Prompt(ids, tuple(range(len(ids)))) for ids in kept],
        # The anchor's row is kept once.
        keep_lengths=[len(ids) - (len(head) if i else 0) for i, ids in enumerate(kept)],
    )
    settings = {"rho": body.ridge, "keep_weight": body.keep_weight, "rank": body.rank} | options
    first = 1 if body.from_layer is None else body.from_layer % 3
    return theirs.static_fit(subject.oracle, asked, range(first, 3), **settings)


def dense(found: MadeAdapter, layer: int) -> Array:
    """ΔW of a layer's second weight."""
    update = found.updates[layer].w_out
    assert update is not None
    matrix: Array = update.dense().double().numpy()
    return matrix


@only_tiny
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="matched"),
        pytest.param({"baseline": "anchored"}, id="anchored"),
        pytest.param({"baseline": "alone", "from_layer": 0}, id="alone from layer 0"),
        pytest.param({"fit_on": "answer", "keep_weight": 3.0}, id="answer", marks=pytest.mark.slow),
        pytest.param({"fit_on": "last", "ridge": 1.0, "keep": "none"}, id="last"),
        pytest.param({"from_layer": -1, "rank": 1}, id="last layer", marks=pytest.mark.slow),
    ],
)
def test_updates_equal_the_oracles(subject: Subject, options: dict[str, Any]) -> None:
    """ΔW of each layer, its norm and its rank are those of full patched runs in float64; another λ
    gives another ΔW."""
    body = body_of(subject, measured=0, **options)
    found, truth = made(subject, body), oracles(subject, body)
    wrong = oracles(subject, body, rho=1.05 * body.ridge)
    assert list(found.updates) == [one.layer for one in found.layers] == list(truth)
    for one in found.layers:
        matrix, other = truth[one.layer].w_out, wrong[one.layer].w_out
        assert matrix is not None
        assert other is not None
        assert distance(dense(found, one.layer), matrix) <= 1e-4
        assert distance(dense(found, one.layer), other) > 1e-3
        assert one.norm == pytest.approx(float(np.linalg.norm(matrix)), rel=1e-4)
        assert one.rank == min(body.rank, 4 if body.fit_on == "last" else body.rank)
        assert one.kept_energy is not None
        assert 0 < one.kept_energy <= 1 + 1e-12
    assert drive(subject.model, found.check(found.updates)) <= 1e-5


@only_tiny
def test_figures_equal_the_oracles(subject: Subject) -> None:
    """The figures on held-out and fitted queries are those of full runs in float64."""
    body = body_of(subject)
    found, patches = made(subject, body), oracles(subject, body)
    fitted, _ = prompts_of(subject, body, body.queries)
    for name, queries in (("in_sample", body.queries), ("held_out", body.held_out or ())):
        full, base = prompts_of(subject, body, queries)
        kl = theirs.divergences(subject.oracle, full, base, fitted, patches)
        none, patched, constant = map(sum, (kl.none, kl.patched, kl.constant))
        each = [1 - new / old for new, old in zip(kl.patched, kl.none, strict=True)]
        figures = found.fields[name]
        assert isinstance(figures, Figures)
        assert figures.n == len(queries)
        assert figures.kl_none == pytest.approx(none / len(queries), rel=1e-4)
        assert figures.kl_patched == pytest.approx(patched / len(queries), rel=1e-3)
        assert figures.recovered == pytest.approx(1 - patched / none, abs=1e-3)
        assert figures.recovered_median == pytest.approx(median(each), abs=1e-3)
        least = min(constant, none)
        assert figures.beyond_constant == pytest.approx(1 - patched / least, abs=1e-3)
        assert len(figures.teacher_forced) == TOKENS
        first = figures.teacher_forced[0]
        assert (first.recovered, first.top_1) == (figures.recovered, figures.top_1)
    assert found.fields["rivals"].constant == pytest.approx(1 - constant / none, abs=1e-3)
    own = [theirs.greedy(subject.oracle, one, TOKENS, patches) for one in base]
    truth = [theirs.greedy(subject.oracle, one, TOKENS) for one in full]
    assert figures.free_run == np.equal(own, truth).mean()
    assert found.fields["fit"].rows == 4 * 4
    assert found.fields["fit"].keep_rows == 7


@only_tiny
def test_teacher_forced_figures_equal_the_oracles(subject: Subject) -> None:
    """So are those of the last answer token, where each run has read the answer with context."""
    body = body_of(subject)
    found, patches = made(subject, body), oracles(subject, body)
    full, base = prompts_of(subject, body, body.held_out or ())
    answers = [theirs.greedy(subject.oracle, one, TOKENS)[:-1] for one in full]
    full, base = (
        [theirs.extended(*one) for one in zip(prompts, answers, strict=True)]
        for prompts in (full, base)
    )
    kl = theirs.divergences(subject.oracle, full, base, full, patches)
    recovered = 1 - sum(kl.patched) / sum(kl.none)
    last = found.fields["held_out"].teacher_forced[-1]
    assert last.token == TOKENS - 1
    assert last.recovered == pytest.approx(recovered, abs=1e-3)
    assert abs(found.fields["held_out"].recovered - recovered) > 1e-2


@only_tiny
def test_packs_do_not_change_the_adapter(subject: Subject) -> None:
    """Runs that are computed one by one give the adapter of runs that share packs."""

    def apart(model: Model, runs: Sequence[Run]) -> list[Activations]:
        return [forward(model, [run])[0] for run in runs]

    body = body_of(subject)
    plan = plan_static_adapter(subject.model, body)
    together, alone = made(subject, body), drive(subject.model, plan, apart)
    for layer in together.updates:
        assert distance(dense(alone, layer), dense(together, layer)) <= 1e-4
    figures = alone.fields["held_out"], together.fields["held_out"]
    assert figures[0].recovered == pytest.approx(figures[1].recovered, abs=1e-4)


@only_tiny
@pytest.mark.parametrize("measured", [0, 8])
def test_work_bounds_what_is_computed(subject: Subject, measured: int) -> None:
    """The plan's rows times layers are at least what the forwards compute, and at most four times
    as many."""
    tree, computed = Prefixes(dtype=subject.model.dtype), [0]

    def counted(model: Model, runs: Sequence[Run]) -> list[Activations]:
        rows = tree.misses
        read = forward(model, runs, prefixes=tree)
        layers = 1 if runs[0].begin is not None else model.n_layers
        computed.append((tree.misses - rows) * layers)
        return read

    plan = plan_static_adapter(subject.model, body_of(subject, measured))
    drive(subject.model, plan, counted)
    assert len(computed) > 5
    assert sum(computed) <= plan.work.rows * plan.work.layers <= 4 * sum(computed)


@only_tiny
def test_mean_output_is_one_bias_per_layer(subject: Subject) -> None:
    """The recipe gives biases without a rank, and its figures at the queries' ends are those of
    the rival."""
    body = body_of(subject, recipe="mean_output")
    found = made(subject, body)
    assert found.form == "bias"
    assert found.fields["fit"].keep_rows == 0
    for one in found.layers:
        update = found.updates[one.layer]
        assert update.w_out is None
        assert update.bias is not None
        assert one.norm == pytest.approx(float(update.bias.double().norm()))
        assert (one.rank, one.kept_energy) == (0, None)
    rivals, held_out = found.fields["rivals"], found.fields["held_out"]
    assert rivals.mean_output == pytest.approx(held_out.recovered, abs=1e-6)
    assert rivals.mean_output_beyond_constant == pytest.approx(held_out.beyond_constant, abs=1e-6)
    assert drive(subject.model, found.check(found.updates)) <= 1e-5


@only_tiny
def test_check_measures_what_was_read_from_a_file(subject: Subject) -> None:
    """`check` is rounding for the updates themselves, and large for others."""
    found = made(subject, body_of(subject, measured=0))
    assert drive(subject.model, found.check(found.updates)) <= 1e-5
    halved = {layer: update.scaled(0.5) for layer, update in found.updates.items()}
    assert drive(subject.model, found.check(halved)) > 1e-2
    some = {layer: found.updates[layer] for layer in [1]}
    assert drive(subject.model, found.check(some)) > 1e-2


@only_tiny
@pytest.mark.parametrize(("queries", "held_out"), [(2, 0), (23, 7), (24, 8)])
def test_every_third_query_is_held_out_by_default(
    subject: Subject, queries: int, held_out: int
) -> None:
    """Without `held_out`, every third query is not fitted. Under eight of them, no figures are
    given that would be read as quality."""
    texts = [list(subject.ids([i, i + 1])) for i in range(queries)]
    body = body_of(subject, queries=texts, answer_tokens=1)
    fields = made(subject, body.model_copy(update={"held_out": None})).fields
    assert fields["fit"].k == queries - held_out
    if held_out < 8:
        assert fields["held_out"] is fields["rivals"] is None
        assert fields["in_sample"].n == queries - held_out
        return
    kept = [text for i, text in enumerate(texts) if i % 3 != 2]
    named = {"queries": kept, "held_out": texts[2::3]}
    same = made(subject, body.model_copy(update=named)).fields
    assert fields["held_out"] == same["held_out"]
    assert fields["held_out"].n == held_out


@only_tiny
def test_repeated_queries_count_once(subject: Subject) -> None:
    """No repetition of a fitted query is held out, and no held-out query is counted twice."""
    asked = [list(subject.ids([i, i + 1])) for i in range(6)]
    body = body_of(subject, queries=[asked[0], *asked, *asked], held_out=None)
    split = resolution.resolve_task(subject.model, body)
    assert [one.baseline.ids for one in split.fitted] == [tuple(asked[i]) for i in (0, 1, 3, 4)]
    assert [one.baseline.ids for one in split.held_out] == [tuple(asked[i]) for i in (2, 5)]
    named = body.model_copy(update={"queries": asked[:2], "held_out": asked[2:] * 2})
    split = resolution.resolve_task(subject.model, named)
    assert [one.baseline.ids for one in split.held_out] == [tuple(one) for one in asked[2:]]


@only_tiny
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_kept_texts_do_not_measure_damage(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """Collateral is that of the texts that the request does not keep, and absent without any."""
    texts = ("A cow.", "Two hens.", "No sheep.")
    monkeypatch.setattr(resolution, "COLLATERAL", texts)
    options = {"keep": list(texts[:kept]), "answer_tokens": 1, "from_layer": -1}
    fields = made(subject, body_of(subject, measured=0, **options)).fields
    found = fields.get("collateral")
    assert (found.texts if found else 0) == len(texts) - kept


@only_tiny
@pytest.mark.parametrize("first", [0, -1])
def test_fit_without_a_solution_is_an_error_that_names_its_layer(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """A failed factorisation does not become an adapter."""
    real = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda system: real(-system))
    with pytest.raises(IllConditioned, match=f"The fit of layer {first % 3} has no solution"):
        made(subject, body_of(subject, from_layer=first))


@pytest.mark.parametrize("name", ["llama", "neox-parallel", "opt", "qwen2"])
def test_families_have_static_adapters(variant_of: Callable[[str], Subject], name: str) -> None:
    """Gated, parallel and other blocks are patched as the walk patches them, and the fit recovers
    most of the effect on its own queries."""
    subject = variant_of(name)
    body = body_of(subject, measured=0, rank=64, ridge=1e-3)
    found = made(subject, body)
    assert drive(subject.model, found.check(found.updates)) <= 1e-5
    assert found.fields["in_sample"].recovered > 0.9


def test_gemma_has_no_static_adapter(variant_of: Callable[[str], Subject]) -> None:
    """Where a norm follows the MLP, its output is not linear in the second weight."""
    subject = variant_of("gemma3")
    with pytest.raises(NotSupported, match="a norm follows its MLP"):
        plan_static_adapter(subject.model, body_of(subject))


def test_half_precision_is_fitted_in_float32(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A bfloat16 model gives float32 updates that its float32 runs reproduce."""
    with torch.inference_mode(False):
        folder = save_tiny(tmp_path_factory.mktemp("half"), dtype=torch.bfloat16)
    model = load(str(folder), revision=None, device="cpu", dtype="bfloat16")
    subject = Subject(model, oracle.GPT2(folder))
    found = made(subject, body_of(subject, measured=0))
    update = found.updates[1].w_out
    assert update is not None
    assert update.input.dtype == torch.float32
    assert drive(model, found.check(found.updates)) <= 1e-5


@only_tiny
@pytest.mark.parametrize(
    ("options", "error", "path"),
    [
        ({"queries": [[1, 2]]}, TooFewQueries, ("queries",)),
        ({"queries": []}, TooFewQueries, ("queries",)),
        ({"queries": [[1, 2], [1, 2]]}, TooFewQueries, ("queries",)),
        ({"queries": [[1], [2]], "held_out": [[3], [2]]}, NotSupported, ("held_out", 1)),
        ({"queries": [[1, 2], []]}, EmptyQuery, ("queries", 1)),
        ({"held_out": [[1], ""]}, EmptyQuery, ("held_out", 1)),
        ({"keep": [[1], []]}, EmptyQuery, ("keep", 1)),
        ({"keep": [[1] * 64, [1] * 65]}, PromptTooLong, ("keep", 1)),
        ({"held_out": [[1] * 56, [1] * 57]}, PromptTooLong, ("held_out", 1)),
        ({"from_layer": 3}, LayerOutOfRange, ("from_layer",)),
        ({"from_layer": -4}, LayerOutOfRange, ("from_layer",)),
    ],
)
def test_requests_that_do_not_fit_are_refused(
    subject: Subject, options: dict[str, Any], error: type[Refused], path: tuple[str | int, ...]
) -> None:
    """The error names the field, before anything is computed."""
    with pytest.raises(error) as refused:
        plan_static_adapter(subject.model, body_of(subject, **options))
    assert refused.value.at == path
