"""Token adapters of every family, compared with the oracle's patches and its patched runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from schemas.adapters import AdapterLayer, TokenAdapterRequest
from schemas.pairs import AnotherContext, Form
from service.analysis.adapters import MadeAdapter, adapter_id, adapter_key, plan_token_adapter
from service.analysis.adapters.token import token_adapter, verified
from service.analysis.pairs import resolve_pair
from service.engine import Activations, Model, Run, drive, load
from service.engine.walk import forward
from service.errors import NotSupported, PositionOutOfRange
from service.theory import DependentRows, LowRank, NonFinite, StaticUpdate
from tests import oracle
from tests.analysis.subjects import (
    BASELINES,
    CAPTURED,
    CONTEXT,
    OTHER,
    QUERY,
    Subject,
    agree,
    baselines_of,
)
from tests.checkpoints import save_tiny
from tests.oracle import Patch

BAR = 5e-6
"""Largest relative error of the logits under an adapter (adapters.md)."""
CASES: list[tuple[Form, tuple[int, ...]]] = [
    ("bias", (2,)),
    ("weights", (2,)),
    ("weights", (0, 2)),
    ("weights", (0, 1, 2)),
]


def made(
    subject: Subject, baseline: str, positions: Sequence[int], form: Form
) -> MadeAdapter | None:
    """An adapter of the subject's pair, or None where the model has none of this form."""
    model = subject.model
    if form == "bias" and model.bias_parameter(0) is None:
        return None
    if len(positions) > 1 and model.post_norms:
        return None
    return drive(model, token_adapter(model, subject.pair(baseline, positions), form))


def dense(update: StaticUpdate) -> Patch:
    """An update as the oracle takes it: dense matrices in float64."""

    def matrix(one: LowRank | None) -> Any:
        return None if one is None else one.to(torch.float64).dense().numpy()

    vectors = [None if one is None else one.double().numpy() for one in (update.bias, update.gain)]
    return Patch(matrix(update.w_in), matrix(update.w_out), vectors[0], gain=vectors[1])


def logits_error(
    question: oracle.Question, updates: Mapping[int, StaticUpdate], positions: Sequence[int]
) -> float:
    """The largest relative error of the oracle's logits under an adapter, at the positions."""
    patched = question.patched({layer: dense(update) for layer, update in updates.items()})
    rows = ((patched.logits[j], question.full.logits[j]) for j in positions)
    return max(oracle.relative_error(*row) for row in rows)


@pytest.mark.parametrize(("form", "positions"), CASES)
def test_adapters_of_every_family_give_the_logits_with_context(
    variant: Subject, form: Form, positions: tuple[int, ...]
) -> None:
    """An adapter's float32 numbers in the oracle's float64 runs of the baseline alone give the
    logits with context at all its positions, and so do the engine's runs. Without one of its parts
    they do not."""
    for baseline in baselines_of(variant.model, "one"):
        found = made(variant, baseline, positions, form)
        if found is None:
            continue
        question, pair = variant.question(baseline), variant.pair(baseline, positions)
        assert logits_error(question, found.updates, positions) <= BAR
        assert drive(variant.model, found.check(found.updates)) <= BAR
        wrong = planted(found)
        assert logits_error(question, wrong["Δh"], positions) > 100 * BAR
        for name, updates in wrong.items():
            assert drive(variant.model, verified(variant.model, pair, updates)) > 100 * BAR, name


def planted(found: MadeAdapter) -> dict[str, dict[int, StaticUpdate]]:
    """Adapters that lack a part, by the part's name."""
    updates = found.updates
    wrong = {
        "a layer": {layer: one for layer, one in updates.items() if layer},
        "Δh": {
            layer: replace(one, bias=None, w_out=None, gain=None) for layer, one in updates.items()
        },
    }
    if any(one.w_in is not None for one in updates.values()):
        wrong["ΔW"] = {layer: replace(one, w_in=None) for layer, one in updates.items()}
    return wrong


@pytest.mark.parametrize(("form", "positions"), CASES)
def test_updates_of_every_family_equal_the_oracles(
    variant: Subject, form: Form, positions: tuple[int, ...]
) -> None:
    """Each layer's change is the oracle's sequential one, to the rounding of what it is solved
    from. A parallel block has no change of its first weights."""
    for baseline in baselines_of(variant.model, "one"):
        found = made(variant, baseline, positions, form)
        if found is None:
            continue
        question, parallel = variant.question(baseline), variant.model.parallel
        assert found.form == form
        assert list(found.updates) == list(range(variant.model.n_layers))
        largest = 1.0
        for layer, (patch, condition) in enumerate(truths(question, positions, form, parallel)):
            mine, figures = dense(found.updates[layer]), found.layers[layer]
            rows = [question.full[layer, "resid_mid"], question.base[layer, "resid_mid"]]
            lost = oracle.cancellation(*rows)
            bound = CAPTURED * condition * (1 + lost)
            assert (mine.w_in is None) == parallel
            for name in ("w_in", "w_out", "output_bias", "gain"):
                theirs, own = getattr(patch, name), getattr(mine, name)
                if theirs is not None and own is not None:
                    agree(own, theirs, bound, (layer, name))
                else:
                    assert own is None, name
            check_figures(variant.model, figures, patch, parallel, bound)
            largest = max(largest, condition)
        if len(positions) > 1:
            agree(found.fields["condition"], largest, CAPTURED * largest)
        else:
            assert found.fields["condition"] == 1.0
        assert found.fields["positions"] == positions


def truths(
    question: oracle.Question, positions: Sequence[int], form: Form, parallel: bool
) -> list[tuple[Patch, float]]:
    """The oracle's patch of each layer, and the condition of the rows that it is solved from."""
    if len(positions) == 1:
        updates = oracle.sequential(question, positions[0], form).updates
        return [(one.patch_in(form), 1.0) for one in updates]
    found = []
    for one in oracle.sequential_joints(question, positions):
        solved = [one.w_out] if parallel else [one.w_in, one.w_out]
        found.append((one.patch, max(solution.condition for solution in solved)))
    return found


def check_figures(
    model: Model, figures: AdapterLayer, patch: Patch, parallel: bool, bound: float
) -> None:
    """The norm and the rank of a layer are those of the dense matrices."""
    w_in = None if parallel else patch.w_in
    squares = [
        np.square(one).sum() for one in (w_in, patch.w_out, patch.output_bias) if one is not None
    ]
    norm = model.blocks[figures.layer].post_mlp
    if patch.gain is not None and norm is not None:
        squares.append(np.square(patch.gain - norm.gain.double().numpy()).sum())
    agree(figures.norm, np.sqrt(sum(squares)), bound, figures.layer)
    ranks = [np.linalg.matrix_rank(one, 1e-6) for one in (w_in, patch.w_out) if one is not None]
    assert figures.rank == max(ranks, default=0)
    assert figures.kept_energy is None


@pytest.mark.parametrize(("form", "positions"), CASES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_adapters_hold_in_every_baseline(
    subject: Subject, baseline: str, form: Form, positions: tuple[int, ...]
) -> None:
    """On the random and on the bundled GPT-2 an adapter of each baseline is exact for its own
    query, and far from it for another query and in another baseline."""
    model = subject.model
    found = made(subject, baseline, positions, form)
    assert found is not None
    assert found.exact
    assert (found.kind, found.form, found.fields["positions"]) == ("token", form, positions)
    pair = subject.pair(baseline, positions)
    assert found.baseline == pair.kind
    assert found.position_shift == subject.question(baseline).position_shift
    assert drive(model, found.check(found.updates)) <= BAR
    for one in found.updates.values():
        parts = [part.input for part in (one.w_in, one.w_out) if part is not None]
        assert {part.dtype for part in parts} == {torch.float32}
    query = subject.ids([30, 31, 32])
    other = resolve_pair(model, subject.ids(CONTEXT), query, pair.kind, positions)
    assert drive(model, verified(model, other, found.updates)) > 1e-3
    moved = subject.pair("alone" if baseline != "alone" else "another", positions)
    assert drive(model, verified(model, moved, found.updates)) > 1e-3


def test_requests_choose_form_and_positions(tiny: Model) -> None:
    """By default the bias carries Δh of one position and the second weight that of several, and
    positions are given in ascending order."""
    for positions, form, expected in (
        ("last", None, ("bias", (2,))),
        ([-1, 0], None, ("weights", (0, 2))),
        ("last", "weights", ("weights", (2,))),
    ):
        plan = plan_token_adapter(tiny, body(positions=positions, form=form))
        assert (plan.work.rows, plan.work.layers, plan.work.number_bytes) == (12 + 3, 3, 4)
        found = drive(tiny, plan)
        assert (found.form, found.fields["positions"]) == expected


def body(**fields: Any) -> TokenAdapterRequest:
    """A request for a token adapter of the ids that every model has."""
    return TokenAdapterRequest(**{"kind": "token", "context": CONTEXT, "query": QUERY, **fields})


@pytest.mark.parametrize(
    ("name", "fields", "at", "instead"),
    [
        ("gpt2", {"positions": "all", "form": "bias"}, "form", "`weights`"),
        ("llama", {"form": "bias"}, "form", "`weights`"),
        ("opt-biasless", {"form": "bias"}, "form", "`weights`"),
        ("gemma3", {"form": "bias"}, "form", "`weights`"),
        ("gemma3", {"positions": "all"}, "positions", "for each position"),
    ],
)
def test_impossible_adapters_are_refused(
    name: str, fields: Any, at: str, instead: str, variant_of: Callable[[str], Subject]
) -> None:
    """What no adapter can hold is refused, and the refusal says what to ask for instead."""
    with pytest.raises(NotSupported, match=instead) as refused:
        plan_token_adapter(variant_of(name).model, body(**fields))
    assert refused.value.at == (at,)


@pytest.mark.parametrize("name", ["llama", "neox-parallel"])
def test_dependent_rows_are_refused_with_their_condition(
    name: str, variant_of: Callable[[str], Subject]
) -> None:
    """A model with relative positions reads the same token twice in the same way, so no patch is
    exact at both positions. It is exact at each of them."""
    model = variant_of(name).model
    asked = body(query=[7, 7], positions="all", baseline="matched")
    with pytest.raises(DependentRows, match="fewer positions") as refused:
        drive(model, plan_token_adapter(model, asked))
    assert refused.value.condition > 1e6
    for position in (0, 1):
        asked = body(query=[7, 7], positions=[position], baseline="matched", form="weights")
        found = drive(model, plan_token_adapter(model, asked))
        assert drive(model, found.check(found.updates)) <= BAR


def test_equal_contexts_have_an_adapter_that_changes_nothing(tiny: Model) -> None:
    """If the baseline reads the same context, every change is rounding."""
    asked = body(baseline=AnotherContext(context=CONTEXT), form="weights")
    found = drive(tiny, plan_token_adapter(tiny, asked))
    assert max(one.norm for one in found.layers) <= 1e-5
    assert drive(tiny, found.check(found.updates)) <= BAR


def test_update_that_does_not_exist_is_refused(tiny: Model) -> None:
    """A baseline whose mlp_in is zero has no update of one position, and none of several."""

    def zeroed(model: Model, runs: Sequence[Run]) -> Sequence[Activations]:
        *others, last = forward(model, runs)
        zero = {site: torch.zeros_like(value) for site, value in last.items()}
        return [*others, Activations(zero, last.conditions)]

    for positions, error in (("last", NonFinite), ("all", DependentRows)):
        plan = plan_token_adapter(tiny, body(positions=positions))
        with pytest.raises(error):
            drive(tiny, plan, zeroed)


def test_half_precision_models_have_float32_adapters(tmp_path: Any) -> None:
    """The adapter of a model in bfloat16 is formed and verified in float32."""
    with torch.inference_mode(False):
        folder = save_tiny(tmp_path / "half")
    model = load(str(folder), revision=None, device="cpu", dtype="bfloat16")
    found = drive(model, plan_token_adapter(model, body(positions=[0, 2])))
    assert drive(model, found.check(found.updates)) <= BAR


SAME: list[dict[str, Any]] = [
    {"name": "mine"},
    {"positions": [2, 0]},
    {"positions": [-1, 0]},
    {"baseline": "matched"},
    {"form": "weights"},
]
OTHERS: list[dict[str, Any]] = [
    {"context": OTHER},
    {"query": QUERY[:-1], "positions": [0, 1]},
    {"baseline": "alone"},
    {"positions": [0, 1]},
    {"positions": [0]},
    {"positions": [0], "form": "weights"},
    {"baseline": {"context": OTHER}},
    {"baseline": {"without": [(0, 2)]}},
]


def test_the_same_adapter_has_the_same_id(tiny: Model) -> None:
    """Names, defaults and the order of positions do not matter; everything else does."""
    first = {"positions": [0, 2]}
    key = adapter_key(tiny, body(**first))
    assert {adapter_key(tiny, body(**(first | more))) for more in SAME} == {key}
    others = {adapter_id(tiny, body(**(first | more))) for more in OTHERS}
    assert len(others - {adapter_id(tiny, body(**first))}) == len(OTHERS)


def test_texts_and_their_ids_have_the_same_id(bundled: Model) -> None:
    """A text and the ids that it becomes are the same adapter, also in the baseline's context."""
    texts = ["The capital of France is", " Paris", "The capital of Spain is"]
    ids = [list(bundled.tokenizer.encode(text)) for text in texts]
    keys = {
        adapter_key(
            bundled, body(context=context, query=query, baseline=AnotherContext(context=other))
        )
        for context, query, other in (texts, ids)
    }
    assert len(keys) == 1


def test_positions_outside_the_query_are_refused(tiny: Model) -> None:
    """A position that the query does not have is refused by both functions."""
    for asked in (adapter_key, plan_token_adapter):
        with pytest.raises(PositionOutOfRange):
            asked(tiny, body(positions=[3]))
