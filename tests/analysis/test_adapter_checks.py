"""Equivalence checks of the patch of a stored adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from schemas.adapters import Adapter, TokenAdapterRequest
from schemas.common import UNSET
from schemas.equivalence_checks import EquivalenceChecksAnswer, EquivalenceChecksRequest
from service.analysis.adapters import MadeAdapter, adapter_id, plan_token_adapter
from service.analysis.equivalence_checks import plan_equivalence_checks
from service.analysis.model_checks import CONTROL
from service.engine import Model, drive
from service.errors import NotSupported
from service.theory import StaticUpdate
from tests.analysis.subjects import CONTEXT, OTHER, QUERY, Subject

PAIR: dict[str, Any] = {"context": CONTEXT, "query": QUERY}


@dataclass(frozen=True, eq=False)
class Stored:
    """An adapter as the store returns it."""

    id: str
    updates: Mapping[int, StaticUpdate]
    record: Adapter


def stored(model: Model, **fields: Any) -> Stored:
    """A token adapter of the pair, as it is read from the store."""
    body = TokenAdapterRequest(kind="token", **PAIR, **fields)
    return recorded(model, adapter_id(model, body), drive(model, plan_token_adapter(model, body)))


def recorded(model: Model, name: str, made: MadeAdapter) -> Stored:
    """A made adapter with its record."""
    record = Adapter(
        model=model.summary,
        id=name,
        kind=made.kind,
        name=None,
        created="2026-01-01T00:00:00Z",
        exact=made.exact,
        files=(),
        bytes=0,
        baseline=made.baseline,
        position_shift=made.position_shift,
        form=made.form,
        peft_only=model.post_norms,
        layers=made.layers,
        verified=0.0,
        **made.fields,
    )
    return Stored(name, made.updates, record)


def asked(model: Model, adapter: Stored, **fields: Any) -> EquivalenceChecksAnswer:
    """The answer to a check of an adapter's patch."""
    request = request_of(adapter, **fields)
    return drive(model, plan_equivalence_checks(model, request, adapter))


def request_of(adapter: Stored, **fields: Any) -> EquivalenceChecksRequest:
    """A request to check the patch of an adapter."""
    known: dict[str, Any] = {"scope": "model", "patch": {"adapter": adapter.id}}
    return EquivalenceChecksRequest(**{**PAIR, **known, **fields})


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma3", "neox-parallel"])
@pytest.mark.parametrize("positions", [(2,), (0, 2)])
def test_patch_of_an_adapter_holds_at_its_positions(
    name: str, positions: Sequence[int], variant_of: Callable[[str], Subject]
) -> None:
    """Every block and the logits hold under the one patch, applied in both ways, and the control
    does not."""
    model = variant_of(name).model
    if model.post_norms and len(positions) > 1:
        return
    adapter = stored(model, positions=list(positions))
    for apply in ("materialized", "factored"):
        answer = asked(model, adapter, positions=list(positions), apply=apply)
        assert (answer.verdict, answer.adapter) == ("holds", adapter.id)
        assert (answer.form, answer.stream) == (adapter.record.form, "sequential")
        assert len(answer.checks) == model.n_layers * len(positions)
        assert answer.logits
        assert [one.position for one in answer.logits] == list(positions)
        for one in answer.logits:
            assert one.controls
            assert (one.controls[CONTROL] or 0.0) > 100 * one.tolerance


def test_patch_that_lacks_a_part_fails(tiny: Model) -> None:
    """An adapter without Δh, or without ΔW in one layer, fails, so the check uses its numbers."""
    adapter = stored(tiny)
    without_bias = {layer: replace(one, bias=None) for layer, one in adapter.updates.items()}
    without_weight = {**adapter.updates, 1: replace(adapter.updates[1], w_in=None)}
    for updates in (without_bias, without_weight):
        answer = asked(tiny, replace(adapter, updates=updates), controls=False)
        assert answer.verdict == "fails"


def test_answer_without_a_patch_names_no_adapter(tiny: Model) -> None:
    """The patch is formed anew if the request names none."""
    request = EquivalenceChecksRequest(**PAIR, scope="model")
    answer = drive(tiny, plan_equivalence_checks(tiny, request))
    assert answer.adapter is UNSET


REFUSED: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({"scope": "block"}, ("patch",), "scope `model`"),
    ({"precision": "float64"}, ("precision",), "float32"),
    ({"context": OTHER}, ("patch", "adapter"), "another context"),
    ({"query": QUERY[:-1], "positions": [0]}, ("patch", "adapter"), "another context, query"),
    ({"baseline": "alone"}, ("patch", "adapter"), "baseline"),
    ({"positions": "all"}, ("positions",), r"\[0, 2\]"),
    ({"form": "bias"}, ("form",), "`weights`"),
]


@pytest.mark.parametrize(("fields", "at", "reason"), REFUSED)
def test_patch_for_other_runs_is_refused(
    tiny: Model, fields: dict[str, Any], at: tuple[str, ...], reason: str
) -> None:
    """A patch is refused with the reason where it is not exact."""
    adapter = stored(tiny, positions=[0, 2])
    with pytest.raises(NotSupported, match=reason) as refused:
        plan_equivalence_checks(tiny, request_of(adapter, **fields), adapter)
    assert refused.value.at == at


def test_fitted_adapter_is_refused(tiny: Model) -> None:
    """A static adapter is exact for no query, so it has no check."""
    adapter = stored(tiny)
    fitted = replace(adapter, record=replace(adapter.record, kind="static"))
    with pytest.raises(NotSupported, match="fitted"):
        plan_equivalence_checks(tiny, request_of(fitted), fitted)


def test_patch_without_an_adapter_is_refused(tiny: Model) -> None:
    """A patch is never left out silently."""
    request = request_of(stored(tiny))
    with pytest.raises(NotSupported, match="no adapters"):
        plan_equivalence_checks(tiny, request)
